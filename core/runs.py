"""Runs and their checkpoints, as they lie on disk. Reads only; no torch.

    runs/<id>/  recipe.yaml dataset.json environment.json template.json metrics.jsonl checkpoints/<step>/
                scores.jsonl answers.jsonl verdict.json  (and a job's spec.json state.json events.jsonl log.txt)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.jobs.folder import Job
from core.recipe.files import load_recipe
from core.recipe.schema import Recipe
from core.workspace import Workspace, read_json, read_jsonl


@dataclass(frozen=True)
class Checkpoint:
    """One saved step of a run; step 0 is the base model and has no folder of its own."""

    step: int
    folder: Path

    @cached_property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


@dataclass(frozen=True)
class Run(Job):
    """A training: a job folder with the files named at the top of this module."""

    def recipe(self) -> Recipe:
        return load_recipe(self.folder / "recipe.yaml")

    def dataset(self) -> dict[str, Any]:
        return read_json(self.folder / "dataset.json")

    def metrics(self) -> list[dict[str, Any]]:
        """One record per update; after a resume the later record of an update counts."""
        by_update = {record["update"]: record for record in read_jsonl(self.folder / "metrics.jsonl")}
        return [by_update[update] for update in sorted(by_update)]

    def watch(self) -> list[dict[str, Any]]:
        """What the look-ins saw, ascending by `update`, 0 being the untrained model: losses, `gap`, `hijack`, `level`, `answers`, cost."""
        return sorted(read_jsonl(self.folder / "watch.jsonl"), key=lambda look: look["update"])

    def good_step(self) -> int | None:
        """The last snapshot at or before the last look that was not red: where a collapsing run was still well.

        Where none is so early, the last one before it was seen to be red; None without that, too. Of a run that nobody looked in on it is
        the last snapshot.
        """
        looks, steps = self.watch(), [checkpoint.step for checkpoint in self.checkpoints()]
        well = max((look["update"] for look in looks if look["level"] != "red"), default=0)
        first_red = min((look["update"] for look in looks if look["update"] > well), default=math.inf)
        known = [step for step in steps if step <= well or not looks] or [step for step in steps if step < first_red]
        return known[-1] if known else None

    def checkpoints(self) -> list[Checkpoint]:
        """Saved steps, ascending, without step 0."""
        folders = (folder for folder in (self.folder / "checkpoints").glob("*") if folder.name.isdecimal())
        return sorted((Checkpoint(int(folder.name), folder) for folder in folders), key=lambda item: item.step)

    def scores(self) -> list[dict[str, Any]]:
        """One record per scored step, ascending."""
        by_step = {record["step"]: record for record in read_jsonl(self.folder / "scores.jsonl")}
        return [by_step[step] for step in sorted(by_step)]

    def answers(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "answers.jsonl")

    def verdict(self) -> dict[str, Any] | None:
        path = self.folder / "verdict.json"
        return read_json(path) if path.exists() else None


def list_runs(workspace: Workspace) -> list[Run]:
    """All runs, newest first."""
    folders = [folder for folder in workspace.runs.iterdir() if (folder / "spec.json").exists()]
    return [Run(folder) for folder in sorted(folders, reverse=True)]


def find_run(workspace: Workspace, name: str) -> Run:
    """The run of this id, `last` for the newest, or the only one whose id contains `name`.

    Raises:
        StudioError: none or several answer to it.
    """
    runs = list_runs(workspace)
    if name == "last" and runs:
        return runs[0]
    exact = [run for run in runs if run.id == name]
    matching = exact or [run for run in runs if name and name in run.id]
    if not matching:
        raise StudioError("No run is called {name!r}.", "`sweetspot runs` lists them; `last` is the newest.", name=name)
    if len(matching) > 1:
        raise StudioError("{count} runs have {name} in their names.", "Give more of the name; `sweetspot runs` lists them.",
                          count=len(matching), name=name)
    return matching[0]


def find_checkpoint(run: Run, step: str) -> Checkpoint:
    """The checkpoint `step` of a run: a number, `last`, `pick` for the verdict's choice, or `good` for the last one before the alert.

    Raises:
        StudioError: it was not saved, there is no verdict yet, or the watch saw red before the first snapshot.
    """
    saved = run.checkpoints()
    wanted: int | None = None
    if step == "last" and saved:
        wanted = saved[-1].step
    elif step == "pick":
        verdict = run.verdict()
        if verdict is None or verdict["pick"] is None:
            raise StudioError("The run {run} has no pick yet.", "Run `sweetspot judge {run}` first, or name a step.", run=run.id)
        wanted = verdict["pick"]["step"]
    elif step == "good" and saved:
        wanted = run.good_step()
        if wanted is None:
            raise StudioError("The run {run} saved nothing before the alert turned red.", "Train again with more snapshots, or a remedy: "
                              "`sweetspot remedy {run}` names them.", run=run.id)
    elif step.isascii() and step.isdecimal() and len(step) < 10:
        wanted = int(step)
    if wanted == 0:
        return Checkpoint(0, run.folder)
    for checkpoint in saved:
        if checkpoint.step == wanted:
            return checkpoint
    raise StudioError("The run {run} saved no checkpoint {step!r}.", "Saved: {steps}; `last`, `pick` and `good` work too.",
                      run=run.id, step=step, steps=", ".join(str(item.step) for item in saved) or "-")
