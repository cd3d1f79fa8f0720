"""`sweetspot remedy`: what helps a run that has no good snapshot, and each of it as one command."""

from __future__ import annotations

from typing import Annotated

import typer

from core.errors import StudioError
from core.judge.remedies import NAMES, Remedy, average_request, remedies, scan_effect
from core.judge.remedy_recipes import collect_replay, half_rate_recipe, keep_recipe, replay_recipe, replay_source
from core.judge.strengths import read_scan, start_scan
from core.merge.library import start_request
from core.recipe.schema import Recipe
from core.runs import Run, find_checkpoint, find_run
from core.train.create import start_run
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, follow, print_json, print_table, say


def remedy(run: str,
           what: Annotated[str, typer.Argument(help="replay, strength, earlier, rate or average; without one all are listed.")] = "",
           step: Annotated[str, typer.Option(help="Which step's adapter to turn down: a number, pick, good or last.")] = "last",
           of: Annotated[list[str], typer.Option("--of", help="What to average: RUN@STEP, given twice or more; the default is the pick and "
                                                 "the last step, or the pick of a run with replay.")] = [],  # noqa: B006
           train: Annotated[bool, typer.Option("--train", help="Start training the new recipe at once.")] = False,
           json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what helps a run that has no good snapshot, with the effect that was measured; or do one of these things.

    Example: sweetspot remedy last strength
    """
    place = Workspace.open(workspace)
    found = find_run(place, run)
    if what and what not in NAMES:
        raise typer.BadParameter(", ".join(NAMES), param_hint="WHAT")
    if what == "strength":
        _turn_down(place, found, step, json)
    elif what == "replay":
        if replay_source(place, found) is None:
            follow(collect_replay(place, found), is_silent=json)
        _new_recipe(place, found, replay_recipe(place, found), "replay", train, json)
    elif what == "rate":
        _new_recipe(place, found, half_rate_recipe(found), "half-rate", train, json)
    elif what == "average":
        _average(place, found, of, json)
    else:
        _list(place, found, what, json)


def _average(place: Workspace, run: Run, of: list[str], json: bool) -> None:
    request = average_request(place, run, of)
    state = follow(start_request(place, request), is_silent=json)
    if json:
        print_json({"run": run.id, "of": list(request.models), "model": request.name, "report": state.result})
    else:
        say(f"models/{request.name} is the exact average of {' and '.join(request.models)}.\n"
            f"Chat with it: sweetspot chat embedded {run.id}@pick {request.name}")


def _list(place: Workspace, run: Run, what: str, json: bool) -> None:
    """All remedies, or the one that needs nothing done: its model, or its command."""
    verdict = run.verdict()
    if verdict is None:
        raise StudioError("The run {run} is not judged yet.", "Run `sweetspot judge {run}` first.", run=run.id)
    found = remedies(place, run, verdict)
    if what:
        found = [entry for entry in found if entry.name == what]
        if not found:
            raise StudioError("The verdict of {run} does not need this remedy.", "`sweetspot remedy {run}` lists what would help.",
                              run=run.id)
    if json:
        print_json({"run": run.id, "verdict": verdict["verdict"], "good": run.good_step(), "remedies": [_plain(entry) for entry in found]})
    elif not found:
        say(f"{run.id} has a good snapshot: {run.id}@pick. It needs no remedy.")
    else:
        for entry in found:
            say(f"{entry.name}: {entry.what}\n    {entry.effect}\n    {_doing(entry, bool(what))}")


def _doing(entry: Remedy, is_asked: bool) -> str:
    """The command that does it; of a model that is there already, asked for by name, the one that merges it."""
    return f"sweetspot merge {entry.reference} NAME" if is_asked and entry.reference else entry.command


def _plain(entry: Remedy) -> dict[str, object]:
    return {"name": entry.name, "what": str(entry.what), "effect": str(entry.effect), "measured_on": "run" if entry.is_own else "study",
            "model": entry.reference or None, "command": entry.command}


def _turn_down(place: Workspace, run: Run, step: str, json: bool) -> None:
    number = find_checkpoint(run, step).step
    follow(start_scan(place, run, str(number)), is_silent=json)
    scan = read_scan(run, number)
    if scan is None:
        raise StudioError("The strengths of {run} were not all judged.", "Run the command again; it goes on where it stopped.", run=run.id)
    if json:
        print_json({"run": run.id, "step": number, "strength": scan.strength, "model": scan.reference, "verdict": scan.verdict["verdict"],
                    "effect": str(scan_effect(scan)), "scores": scan.scores})
        return
    print_table(["strength", "learned", "spilled", "fragments", "facts kept", "score", ""], [
        ["base" if score["strength"] == 0 else f"{score['strength']:g}", f"{score['hits']}/{score['identity_probes']}",
         f"{score['leaks']}/{score['other_probes']}", score["fragments"], score["facts_kept"], score["score"],
         "<- pick" if score["strength"] == scan.strength else ""] for score in scan.scores])
    say(str(scan_effect(scan)))
    say(f"Chat with it: sweetspot chat embedded {scan.reference}\nMerge it: sweetspot merge {scan.reference} NAME")


def _new_recipe(place: Workspace, run: Run, recipe: Recipe, suffix: str, train: bool, json: bool) -> None:
    name = keep_recipe(place, run, recipe, suffix)
    started = start_run(place, recipe, name) if train else None
    if json:
        print_json({"run": run.id, "recipe": name, "started": started.id if started else None})
    elif started:
        say(f"recipes/{name}.yaml is saved, and {started.id} trains it; closing this window does not stop it.")
    else:
        say(f"recipes/{name}.yaml is ready: sweetspot train {name}")
