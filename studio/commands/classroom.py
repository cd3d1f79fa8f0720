"""`sweetspot class`: see, hand out, collect, order the queue, share, and remove somebody, without opening the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from core.classroom.handout import Handed, hand_out_dataset, hand_out_recipe
from core.classroom.place import CLASS_FILE
from core.classroom.queue import ClassQueue, Entry, job_of
from core.classroom.removal import belongings, bring_back, remove_student
from core.classroom.room import LONGEST_NAME, Classroom, student_slug, tidy_name
from core.classroom.sharing import share_run
from core.classroom.wall import read_wall, results_csv, write_results
from core.errors import StudioError
from core.runs import find_run
from core.workspace import Workspace, check_name, write_text
from studio.terminal import JsonOption, WorkspaceOption, confirm, print_json, say

app = typer.Typer(no_args_is_help=True, help="A class: who is in it, what they found, and what to give them.")


def _room(workspace: str | None) -> Classroom:
    place = Workspace.open(workspace)
    if not (place.root / CLASS_FILE).exists():
        raise StudioError("The workspace {root} is no class yet.", "`sweetspot studio --class` makes it one.", root=place.root)
    return Classroom(place)


@app.command()
def show(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say how every student stands.

    Example: sweetspot class show
    """
    standings = read_wall(_room(workspace))
    if json:
        print_json({"students": [{key: value for key, value in vars(standing).items() if key != "losses"} for standing in standings]})
        return
    for standing in standings:
        score = "-" if standing.score is None else f"{standing.score:.3f} at step {standing.step}"
        say(f"{standing.name:<{LONGEST_NAME}} {standing.state:<10} {standing.verdict or '-':<12} {score}")


@app.command()
def add(names: Annotated[list[str], typer.Argument(help="As they will type them; in quotes where there is a space.")],
        json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Make a workspace for each of these students, and show the code by which each comes in.

    Example: sweetspot class add "Ana Li" Ben
    """
    room, codes = _room(workspace), {}
    for name in names:
        student, code = room.join(name)
        codes[student.name] = f"{code[:4]}-{code[4:]}"
        if not json:
            say(f"{student.name:<24} {codes[student.name]}")
    if json:
        print_json({"codes": codes})


@app.command("hand-out")
def hand_out(dataset: Annotated[str | None, typer.Option(help="A dataset of the class's workspace.")] = None,
             recipe: Annotated[str | None, typer.Option(help="A recipe of the class's workspace, or a preset.")] = None,
             json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Copy a dataset and a recipe into every student's workspace.

    Example: sweetspot class hand-out --dataset alex --recipe identity-lesson-cpu
    """
    room = _room(workspace)
    if dataset is None and recipe is None:
        raise StudioError("Nothing was named to hand out.", "Name a --dataset, a --recipe, or both.")
    handed = {"dataset": hand_out_dataset(room, dataset) if dataset else [], "recipe": hand_out_recipe(room, recipe) if recipe else []}
    if json:
        print_json({kind: [_plain(one) for one in given] for kind, given in handed.items()})
        return
    for kind, given in handed.items():
        for one in given:
            say(f"{kind:<8} {one.student:<24} {one.outcome.replace('_', ' ')}{f': {one.error.problem}' if one.error else ''}")


def _plain(one: Handed) -> dict[str, str | None]:
    return {"student": one.student, "outcome": one.outcome, "problem": str(one.error.problem) if one.error else None}


@app.command()
def collect(file: Annotated[Path, typer.Argument(help="results.csv for the table, or a name ending in .zip for all files.")],
            json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Write everybody's results into one CSV or one zip.

    Example: sweetspot class collect results.zip
    """
    room = _room(workspace)
    if file.exists():
        raise StudioError("The file {path} exists already.", "Name a new file; nothing is overwritten.", path=file)
    if file.suffix.lower() == ".zip":
        count = write_results(room, file)
    else:
        table = results_csv(room)
        count = len(table.splitlines()) - 1
        write_text(file, "\ufeff" + table)
    if json:
        print_json({"file": str(file), "runs": count})
    else:
        say(f"{count} runs in {file}")


@app.command()
def queue(pause: Annotated[bool | None, typer.Option("--pause/--go-on", help="Let no further job begin, or let them again.")] = None,
          first: Annotated[str | None, typer.Option(help="The entry that shall be next.")] = None,
          last: Annotated[str | None, typer.Option(help="The entry before which everybody who waits shall go.")] = None,
          stop: Annotated[str | None, typer.Option(help="The entry, waiting or running, whose job shall end.")] = None,
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show who waits and who runs; pause, go on, put somebody first or last, or stop a job.

    Example: sweetspot class queue --pause
    """
    room = _room(workspace)
    waiting_line = ClassQueue(room.workspace.root)
    if pause is not None:
        waiting_line.pause(pause)
    if first is not None:
        waiting_line.put_first(_entry(waiting_line.waiting(), first).key)
    if last is not None:
        waiting_line.put_last(_entry(waiting_line.waiting(), last).key)
    if stop is not None:
        job_of(room.workspace, _entry(waiting_line.entries(), stop)).request_stop()
    running = [entry for entry in waiting_line.entries() if entry.started is not None]
    waiting, starts = waiting_line.waiting(), waiting_line.expected_starts()
    if json:
        print_json({"paused": waiting_line.orders().paused, "running": [entry.model_dump() for entry in running],
                    "waiting": [entry.model_dump() | {"seconds_to_start": starts.get(entry.key)} for entry in waiting]})
        return
    for entry in running:
        say(f"running  {entry.key}  on {entry.device}")
    for entry in waiting:
        seconds = starts.get(entry.key)
        say(f"waiting  {entry.key}  {'begins when the device is free' if seconds is None else f'begins in about {seconds:.0f} s'}")
    if waiting_line.orders().paused:
        say("The queue is paused.")


def _entry(entries: Sequence[Entry], key: str) -> Entry:
    for entry in entries:
        if entry.key == key:
            return entry
    raise StudioError("No job called {name} waits.", "`sweetspot class queue` lists those that do.", name=key)


def _slug(student: str) -> str:
    """A student's folder, by its name or by the student's."""
    try:
        return check_name(student, "student")
    except StudioError:
        return student_slug(tidy_name(student))


@app.command("share")
def share(run: str, stop: Annotated[bool, typer.Option("--stop", help="Show it no longer.")] = False, json: JsonOption = False,
          workspace: WorkspaceOption = None) -> None:
    """Show a judged run of the teacher's, or of the student in whose workspace this is asked, to everybody in the class.

    Example: sweetspot class share last
    """
    place = Workspace.open(workspace)
    found = find_run(place, run)
    share_run(place, found, not stop)
    if json:
        print_json({"run": found.id, "shared": not stop})
    else:
        say(f"The class no longer sees {found.id}." if stop else f"The class sees verdict, recipe and answers of {found.id}.")


@app.command()
def remove(student: Annotated[str, typer.Argument(help="The student's name or folder.")],
           yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
           json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Take a student off the class: their workspace goes to the trash, from where `class bring-back` fetches it.

    Example: sweetspot class remove ana --dry-run
    """
    room = _room(workspace)
    student = _slug(student)
    has = belongings(room, student)
    what = f"{has.runs} runs, {has.datasets} datasets, {has.recipes} recipes, {has.models} models; {has.freed_bytes / 1e6:.1f} MB"
    if not dry_run:
        if not yes:
            confirm(f"Move {student} with {what} to the trash?")
        remove_student(room, student)
    if json:
        print_json({"student": student, "removed": not dry_run, **vars(has)})
    elif dry_run:
        say(f"{student} would go: {what}.")
    else:
        say(f"{student} is in the trash: {what} come back with `sweetspot workspace trash empty`. "
            f"`sweetspot class bring-back {student}` undoes it.")


@app.command("bring-back")
def bring_back_one(student: str, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Put a removed student back with all their work; their own code works again.

    Example: sweetspot class bring-back ana
    """
    back = bring_back(_room(workspace), _slug(student))
    if json:
        print_json({"student": back.slug, "name": back.name})
    else:
        say(f"{back.name} is back.")
