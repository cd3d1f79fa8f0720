"""`sweetspot workspace ...`, and `run delete | export | import`: room on the disk, the trash, and moving to another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import StudioError
from core.housekeeping.archive_reading import import_archive
from core.housekeeping.archive_writing import export_run, export_workspace
from core.housekeeping.placing import Placed
from core.housekeeping.prune import USUAL, Candidate, Kind, prune, read_room, what_may_go
from core.housekeeping.room import freed_bytes
from core.housekeeping.trash import empty_trash, find_thrown, list_trash, restore
from core.housekeeping.uses import refuse_use
from core.runs import find_run
from core.train.steer import delete_run
from core.workspace import Workspace
from studio.commands.runs import run_app
from studio.terminal import JsonOption, WorkspaceOption, confirm, print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="The workspace: what it takes, prune, trash, export, import.")
trash = typer.Typer(no_args_is_help=True, help="What was thrown away: list, restore, empty.")
app.add_typer(trash, name="trash")

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


@run_app.command()
def delete(run: str, yes: YesOption = False, dry_run: DryOption = False, json: JsonOption = False,
           workspace: WorkspaceOption = None) -> None:
    """Move a run with all its checkpoints to the trash.

    Example: sweetspot run delete last --dry-run
    """
    place = Workspace.open(workspace)
    found = find_run(place, run)
    if found.state().is_active:
        raise StudioError("The run {run} is still running.", "Stop it first with `sweetspot run stop {run}`.", run=found.id)
    refuse_use(place, found.folder)
    size, saved = freed_bytes([found.folder]), len(found.checkpoints())
    if not dry_run:
        if not yes:
            confirm(f"Move {found.id} with {saved} checkpoints ({_size(size)}) to the trash?")
        size = delete_run(found)
    if json:
        print_json({"deleted": None if dry_run else found.id, "run": found.id, "checkpoints": saved, "freed_bytes": size})
    elif dry_run:
        say(f"{found.id} would go, with {saved} checkpoints; {_size(size)} would come back.")
    else:
        say(f"{found.id} is in the trash; {_size(size)} come back with `sweetspot workspace trash empty`.")


@run_app.command("export")
def export_one(run: str, archive: Annotated[Path, typer.Argument(help="NAME.tar, or NAME.tar.gz.")],
               with_base: Annotated[bool, typer.Option("--with-base", help="Take the base model along.")] = False,
               json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Pack a run with its datasets into one archive; it goes on elsewhere after `run import`.

    Example: sweetspot run export last alex.tar
    """
    place = Workspace.open(workspace)
    _print_export(archive, export_run(place, find_run(place, run), archive.absolute(), with_base), json)


@run_app.command("import")
def take_in_run(archive: Path, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Take in a run that `run export` packed; every file is compared with its hash, and a name that is taken gets a number.

    Example: sweetspot run import alex.tar
    """
    _take_in(archive, json, workspace)


@app.command("import")
def take_in_all(archive: Path, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Take in what an archive holds; every file is compared with its hash, and a name that is taken gets a number.

    Example: sweetspot workspace import everything.tar
    """
    _take_in(archive, json, workspace)


def _take_in(archive: Path, json: bool, workspace: str | None) -> None:
    placed = import_archive(Workspace.open(workspace), archive.absolute())
    if json:
        print_json({"imported": [entry.__dict__ for entry in placed]})
        return
    for entry in placed:
        say(_sentence(entry))


def _sentence(entry: Placed) -> str:
    if entry.is_known:
        return f"{entry.part}/{entry.name} is here already, the very same."
    return f"{entry.part}/{entry.here}" + ("" if entry.here == entry.name else f" (was {entry.name}; that name is taken here)")


@app.command("export")
def export_all(archive: Annotated[Path, typer.Argument(help="NAME.tar, or NAME.tar.gz.")], json: JsonOption = False,
               workspace: WorkspaceOption = None) -> None:
    """Pack the whole workspace into one archive, a class with its students, without caches, trash, and the embedded model.

    Example: sweetspot workspace export everything.tar
    """
    _print_export(archive, export_workspace(Workspace.open(workspace), archive.absolute()), json)


def _print_export(archive: Path, manifest: dict, json: bool) -> None:
    size = archive.stat().st_size
    if json:
        print_json({"archive": str(archive), "bytes": size, "files": len(manifest["files"]), "left_out": manifest["left_out"]})
        return
    say(f"{archive}: {len(manifest['files'])} files, {_size(size)}. Take it in elsewhere: sweetspot workspace import {archive.name}")
    if manifest["left_out"]:
        say(f"Left out, because they only point elsewhere: {', '.join(manifest['left_out'])}")


@app.command("room")
def show_room(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what takes room, and what would come back.

    Example: sweetspot workspace room
    """
    room = read_room(Workspace.open(workspace))
    if json:
        print_json(room.__dict__)
        return
    rows = [[part, _size(size)] for part, size in room.by_part.items()]
    print_table(["part", "size"], [*rows, ["trash", _size(room.trash)], ["free on the disk", _size(room.free)]])
    say(f"`sweetspot workspace prune` would give back {_size(room.prunable)}.")


@app.command("prune")
def prune_all(older_than: Annotated[float, typer.Option(min=0, help="Days since a job or a failed run ended.")] = 7.0,
              models: Annotated[bool, typer.Option("--models", help="Also models that no run was trained on.")] = False,
              datasets: Annotated[bool, typer.Option("--datasets", help="Also datasets that no run learned from.")] = False,
              dry_run: DryOption = False, yes: YesOption = False, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Move to the trash what is not needed: leftovers, states for going on with finished runs, old jobs, runs that failed at once.

    Example: sweetspot workspace prune --dry-run
    """
    place = Workspace.open(workspace)
    kinds: tuple[Kind, ...] = (*USUAL, *(["model"] if models else []), *(["dataset"] if datasets else []))
    found = what_may_go(place, kinds, older_than)
    going = [candidate for candidate in found if candidate.kept_by is None]
    size = freed_bytes([candidate.path for candidate in going])
    if not json:
        _print_candidates(place, found)
    thrown = []
    if going and not dry_run:
        if not yes:
            confirm(f"Move {len(going)} things ({_size(size)}) to the trash?")
        thrown = prune(place, going)
    if json:
        print_json({"found": [_plain(place, candidate) for candidate in found], "freed_bytes": size,
                    "thrown_away": [entry.origin for entry in thrown]})
    elif dry_run or not going:
        say(f"{_size(size)} would come back.")
    else:
        say(f"{len(thrown)} things are in the trash; {_size(size)} come back with `sweetspot workspace trash empty`.")


def _plain(place: Workspace, candidate: Candidate) -> dict:
    return {"path": candidate.path.relative_to(place.root).as_posix(), "kind": candidate.kind, "why": str(candidate.why),
            "kept_by": str(candidate.kept_by) if candidate.kept_by else None, "bytes": freed_bytes([candidate.path])}


def _print_candidates(place: Workspace, found: list[Candidate]) -> None:
    if found:
        print_table(["what", "why it may go", "size", "stays because"], [
            [entry["path"], entry["why"], _size(entry["bytes"]), entry["kept_by"]] for entry in (_plain(place, one) for one in found)])


@trash.command("list")
def show_trash(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List what is in the trash, with what would come back.

    Example: sweetspot workspace trash list
    """
    things = list_trash(Workspace.open(workspace))
    if json:
        print_json({"trash": [{"id": thing.id, "from": thing.origin, "thrown": thing.thrown, "freed_bytes": thing.freed_bytes}
                              for thing in things]})
    elif not things:
        say("The trash is empty.")
    else:
        print_table(["id", "from", "size"], [[thing.id, thing.origin, _size(thing.freed_bytes)] for thing in things])


@trash.command("restore")
def put_back(name: Annotated[str, typer.Argument(help="Its id, or a part of where it lay.")], json: JsonOption = False,
             workspace: WorkspaceOption = None) -> None:
    """Put something back where it lay.

    Example: sweetspot workspace trash restore alex
    """
    place = Workspace.open(workspace)
    path = restore(place, find_thrown(place, name))
    if json:
        print_json({"restored": path.relative_to(place.root).as_posix()})
    else:
        say(f"{path.relative_to(place.root)} is back.")


@trash.command("empty")
def empty(yes: YesOption = False, dry_run: DryOption = False, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Delete what is in the trash for good.

    Example: sweetspot workspace trash empty --yes
    """
    place = Workspace.open(workspace)
    things = list_trash(place)
    size = freed_bytes([thing.folder for thing in things])
    if not dry_run:
        if things and not yes:
            confirm(f"Delete {len(things)} things ({_size(size)}) for good?")
        size = empty_trash(place, things)
    if json:
        print_json({"things": len(things), "freed_bytes": size})
    else:
        say(f"{len(things)} things, {_size(size)} {'would come' if dry_run else 'came'} back.")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
