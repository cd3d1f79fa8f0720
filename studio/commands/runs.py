"""`sweetspot train | runs | run ...`: trainings and what becomes of them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.launch import stop_job
from core.recipe.files import find_recipe
from core.recipe.first_trial import measure_first
from core.recipe.schema import Recipe
from core.runs import Run, find_run, list_runs
from core.train.create import describe_resume, start_run
from core.train.devices import join_training
from core.train.metrics import find_alert, watch_cost
from core.train.script import Cluster, launch_script
from core.train.steer import resume_run
from core.words import Text
from core.workspace import Workspace
from studio.commands.recipe import DataOption, SetOption, adapted
from studio.tables import print_scores, print_verdict
from studio.terminal import JsonOption, WorkspaceOption, ago, duration, follow, print_json, print_table, say

WaitOption = Annotated[bool, typer.Option(help="Follow it to its end; it runs by itself either way.")]
run_app = typer.Typer(no_args_is_help=True, help="One run or job: show, follow, stop, resume, delete.")


GpusOption = Annotated[str | None, typer.Option("--gpus", help="How many GPUs, or which: 2, or 0,2. On a processor: how many processes.")]


def train(recipe: Annotated[str, typer.Argument(help="A preset, a recipe of the workspace, or a YAML file.")], data: DataOption = None,
          set_: SetOption = [], name: Annotated[str, typer.Option(help="Name of the run.")] = "",  # noqa: B006
          gpus: GpusOption = None,
          nodes: Annotated[int, typer.Option(min=1, help="How many machines share the training.")] = 1,
          rank: Annotated[int, typer.Option(min=0, help="Which of them this one is; number 0 keeps the run.")] = 0,
          host: Annotated[str, typer.Option(help="HOST:PORT of machine 0.")] = "",
          script: Annotated[str, typer.Option(help="Only print a launch script: plain or slurm.")] = "",
          wait: WaitOption = True,
          measure: Annotated[bool, typer.Option(help="Measure a long run that was never measured by a short trial first.")] = True,
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Start a training as a process of its own.

    Example: sweetspot train identity-lesson-cpu --data alex --set schedule.updates=24
    """
    place = Workspace.open(workspace)
    settings = [*set_, *([f"device.gpus={_gpus(gpus)}"] if gpus else [])]
    adapted_recipe = adapted(find_recipe(place, recipe), data, settings)
    if script:
        _print_script(script, place, recipe, _options(data, set_, name), adapted_recipe, nodes, json)
        return
    if nodes > 1:
        _check_nodes(nodes, rank, host)
        if rank > 0:
            with on_slurms_notice(lambda: None):  # machine 0 hears it too, and its end is the end of all
                raise typer.Exit(join_training(place, adapted_recipe, nodes, rank, host))
    trial = measure_first(place, adapted_recipe) if measure and nodes == 1 else None
    if trial is not None and not json:
        say(f"{trial.id} measures it first; `sweetspot recipe estimate` then says how long it will take.")
    run = start_run(place, adapted_recipe, name, {"count": nodes, "rank": 0, "address": host} if nodes > 1 else None)
    if not json:
        say(f"{run.id} runs by itself; closing this window does not stop it.")
    if wait:
        with on_slurms_notice(run.request_stop):
            follow(run, is_silent=json)
    _print_run(run, json)


@contextmanager
def on_slurms_notice(do: Callable[[], object]) -> Iterator[None]:
    """Under Slurm, TERM says that the time is nearly up: `do` something, and stay, as all that Slurm started ends with this process."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _gpus(given: str) -> str:
    """`2` is a count, `0,2` and `0,` are lists."""
    return f"[{given.strip('[], ')}]" if "," in given or "[" in given else given


def _options(data: str | None, settings: list[str], name: str) -> list[str]:
    return [*(["--data", data] if data else []), *(part for setting in settings for part in ("--set", setting)),
            *(["--name", name] if name else [])]


def _print_script(kind: str, place: Workspace, recipe: str, options: list[str], adapted_recipe: Recipe, nodes: int, json: bool) -> None:
    if kind not in ("plain", "slurm"):
        raise typer.BadParameter("plain or slurm", param_hint="--script")
    gpus = adapted_recipe.device.gpus
    cluster = Cluster(gpus if isinstance(gpus, int) else len(gpus) if isinstance(gpus, list) else 1, nodes)
    text = launch_script(kind, place, recipe, options, cluster)
    if json:
        print_json({"script": text})
    else:
        print(text, end="")  # as it is: it goes into a file


def _check_nodes(nodes: int, rank: int, host: str) -> None:
    if rank >= nodes:
        raise typer.BadParameter(f"0 to {nodes - 1}, as there are {nodes} machines", param_hint="--rank")
    if not re.fullmatch(r"[^\s:]+:\d{1,5}", host):
        raise typer.BadParameter("HOST:PORT of machine 0, such as node0:29500", param_hint="--host")


def show_runs(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the runs, newest first.

    Example: sweetspot runs
    """
    runs = list_runs(Workspace.open(workspace))
    if json:
        print_json({"runs": [_summary(run) for run in runs]})
    elif not runs:
        say("No runs yet. Begin with: sweetspot lesson --name Alex")
    else:
        print_table(["run", "state", "update", "snapshots", "verdict", "pick", "started"], [
            [entry["run"], entry["state"], f"{entry['update']}/{entry['updates']}", len(entry["checkpoints"]), entry["verdict"],
             entry["pick"], ago(entry["created"])] for entry in map(_summary, runs)])


def _summary(run: Run) -> dict:
    state, verdict = run.state(), run.verdict()
    return {"run": run.id, "state": state.state, "update": state.progress.done, "updates": _planned_updates(run),
            "checkpoints": [checkpoint.step for checkpoint in run.checkpoints()], "verdict": verdict["verdict"] if verdict else None,
            "pick": verdict["pick"]["step"] if verdict else None, "created": state.created,
            "problem": str(Text.from_json(state.problem)) if state.problem else None,
            "hint": str(Text.from_json(state.hint)) if state.hint else None}


def _planned_updates(run: Run) -> int | None:
    try:
        return run.spec()["updates"]
    except (StudioError, KeyError):
        return None  # a damaged folder is listed all the same: it takes room


def _print_run(run: Run, json: bool) -> None:
    summary, state = _summary(run), run.state()
    cost, alert = watch_cost(run.metrics(), run.watch()), find_alert(run.watch())
    is_stopped = bool((state.result or {}).get("stopped_by_alert"))
    if json:
        print_json({**summary, "watch": asdict(cost) if cost else None, "alert": asdict(alert) if alert else None,
                    "stopped_by_alert": is_stopped, "good": run.good_step()})
        return
    say(f"{run.id}: {summary['state']}, {summary['update']} of {summary['updates']} updates, "
        f"snapshots {', '.join(map(str, summary['checkpoints'])) or '-'}")
    if state.state == "running":
        say(f"about {duration(state.progress.seconds_left)} left")
    if cost:
        say(f"looked in {cost.looks} times, {100 * cost.share:.1f} % of the updates' time" +
            (f"; {alert.level} at update {alert.update}, first not well at {alert.since}" if alert else "; all was well"))
    if is_stopped:
        say(f"the alert ended it; the last good snapshot is {run.id}@good, step {run.good_step() or '-'}")
    if summary["problem"]:
        say(f"problem: {summary['problem']}\nhint: {summary['hint']}")
    if run.scores():
        print_scores(run)
        print_verdict(run)


@run_app.command()
def show(run: str, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show how a run stands, its scores and its verdict.

    Example: sweetspot run show last
    """
    _print_run(find_run(Workspace.open(workspace), run), json)


@run_app.command("follow")
def follow_job(job: str, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Follow a run or job until it ends.

    Example: sweetspot run follow last
    """
    found = _find_job(Workspace.open(workspace), job)
    state = follow(found, is_silent=json)
    if json:
        print_json({"job": found.id, "state": state.state, "result": state.result})
    else:
        say(f"{found.id}: {state.state}")


@run_app.command()
def stop(job: str, grace: Annotated[float, typer.Option(min=0, help="Seconds it may take to save and end by itself.")] = 60.0,
         json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Stop a run or job; a training saves a snapshot first.

    Example: sweetspot run stop last
    """
    found = _find_job(Workspace.open(workspace), job)
    state = stop_job(found, grace)
    if json:
        print_json({"job": found.id, "state": state.state})
    else:
        say(f"{found.id}: {state.state}")


@run_app.command()
def resume(run: str, gpus: GpusOption = None, wait: WaitOption = True, json: JsonOption = False,
           workspace: WorkspaceOption = None) -> None:
    """Go on with a run that was stopped or killed, from its last saved step.

    Example: sweetspot run resume last
    """
    place = Workspace.open(workspace)
    found = find_run(place, run)
    resume_run(place, found, _gpus(gpus) if gpus else None)
    if not json:
        say(f"{found.id} goes on after update {describe_resume(found)}.")
    if wait:
        follow(found, is_silent=json)
    _print_run(found, json)


def _find_job(place: Workspace, name: str) -> Job:
    """A run by any of its names, or another job by its id."""
    folder = place.jobs / name
    if (folder / "spec.json").exists() and folder.parent == place.jobs:
        return Job(folder)
    return find_run(place, name)
