"""`sweetspot class`: see, hand out, collect, and order the queue of a class without opening the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.classroom.handout import Handed, hand_out_dataset, hand_out_recipe
from core.classroom.place import CLASS_FILE
from core.classroom.queue import ClassQueue
from core.classroom.room import Classroom
from core.classroom.wall import read_wall, results_csv, write_results
from core.errors import StudioError
from core.workspace import Workspace, write_text
from studio.terminal import JsonOption, WorkspaceOption, print_json, say

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
        say(f"{standing.name:<24} {standing.state:<10} {standing.verdict or '-':<12} {score}")


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
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show who waits and who runs; pause, go on, or put somebody first.

    Example: sweetspot class queue --pause
    """
    waiting_line = ClassQueue(_room(workspace).workspace.root)
    if pause is not None:
        waiting_line.pause(pause)
    if first is not None:
        if first not in {entry.key for entry in waiting_line.waiting()}:
            raise StudioError("No job called {name} waits.", "`sweetspot class queue` lists those that do.", name=first)
        waiting_line.put_first(first)
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
