"""The work of a `trial` job: three updates on the longest rows for the memory, a few on the recipe's own for the time.

Both are real trainings by the worker that will train, in a workspace inside the job's folder that is emptied afterwards: what is measured
is what will run, with several processes where the recipe asks for them.
"""

from __future__ import annotations

import importlib
import shutil
import statistics
import time
from dataclasses import dataclass
from typing import Any

from core.data.encode import Encoder
from core.data.library import load_dataset, save_dataset
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.models.catalogue import find_base
from core.models.embedded import EMBEDDED_NAME, prepare_embedded
from core.recipe.files import change_recipe, load_recipe
from core.recipe.schema import Recipe
from core.recipe.trial import Measured, keep_trial
from core.runs import Run
from core.train.create import create_run
from core.workspace import Workspace, read_jsonl

LONGEST_UPDATES = 3
# The first one warms up and is not counted.
TIMED_UPDATES = 5
_DATASET = "longest-rows-of-a-trial"


def trial_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Measure the recipe in this job's folder; keeps the result for every recipe that does the same work per update."""
    recipe = load_recipe(job.folder / "recipe.yaml")
    if recipe.model.source in ("embedded", EMBEDDED_NAME):
        prepare_embedded(workspace, recorder)
    began = time.time()
    importlib.import_module("core.train.worker")
    imports = time.time() - began
    folder = job.folder / "tries"
    try:
        place = Workspace.open(folder)
        for source in {*(source.dataset for source in recipe.data.sources), recipe.probe_dataset}:
            (place.datasets / source).symlink_to(load_dataset(workspace, source).folder.resolve())
        here = change_recipe(recipe, {"model.source": str(find_base(workspace, recipe.model.source).resolve()), "snapshots.count": 1,
                                      "early_stop.on_alert": "off", "log.to": "none"})
        _save_longest_rows(place, here)
        longest = _train(place, change_recipe(here, {"schedule.updates": LONGEST_UPDATES, "data.sources": [{"dataset": _DATASET}],
                                                     "probes.dataset": None}), recorder)
        typical = _train(place, change_recipe(here, {"schedule.updates": TIMED_UPDATES}), recorder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(longest.records) < LONGEST_UPDATES or len(typical.records) < TIMED_UPDATES:
        return {"measured": False}  # somebody stopped it
    keep_trial(workspace, recipe, _measured(longest, typical, imports, job.id))
    return {"measured": True}


@dataclass(frozen=True)
class _Try:
    """One short training: when it began and ended, and what it recorded."""

    began: float
    ended: float
    records: list[dict[str, Any]]
    looks: list[dict[str, Any]]

    @property
    def startup(self) -> float:
        """Seconds until the first update began."""
        return self.records[0]["time"] - self.records[0]["seconds"] - self.began

    @property
    def warmup(self) -> float:
        """Seconds that the first update took longer than the others."""
        first, *warm = (record["seconds"] for record in self.records)
        return max(0.0, first - statistics.median(warm))


def _train(place: Workspace, recipe: Recipe, recorder: Recorder) -> _Try:
    from core.train.worker import train_job

    run: Run = create_run(place, recipe)
    began = time.time()
    train_job(place, run, recorder)
    return _Try(began, time.time(), read_jsonl(run.folder / "metrics.jsonl"), read_jsonl(run.folder / "watch.jsonl"))


def _save_longest_rows(place: Workspace, recipe: Recipe) -> None:
    """A dataset of nothing but the longest rows of the recipe's sources, as many as an update sees."""
    encoder = Encoder.from_folder(find_base(place, recipe.model.source), recipe.data.system)
    found: list[tuple[int, int, dict[str, Any]]] = []
    for source in recipe.data.sources:
        for row in load_dataset(place, source.dataset).rows(source.groups):
            try:
                encoded = encoder.encode_row(row, recipe.data.train_on, recipe.data.max_length)
            except StudioError:
                continue  # the template refuses it; the checks say so
            if any(encoded.trained):
                found.append((len(encoded.ids), -len(found), row))
    found.sort(reverse=True)
    save_dataset(place, _DATASET, [row for *_, row in found[:recipe.schedule.effective_batch]], "trial")


def _measured(longest: _Try, typical: _Try, imports: float, job: str) -> Measured:
    warm = typical.records[1:]
    # The last look comes after the last update, with the snapshot; that at 0 belongs to the start.
    looks = [look["seconds"] for look in typical.looks if look["update"] > 0]
    last_look = sum(look["seconds"] for look in typical.looks if look["update"] == TIMED_UPDATES)
    return Measured(
        memory_bytes=max(record["memory_bytes"] for record in longest.records),
        # The median: another program that wakes up for a moment shall not count for the whole run.
        seconds_per_token=statistics.median(record["seconds"] / record["tokens"] for record in warm),
        # The first of the two wakes the GPU and compiles, the second one asks the probes as well: a run does both.
        startup_seconds=imports + max(longest.startup, typical.startup), warmup_seconds=max(longest.warmup, typical.warmup),
        snapshot_seconds=max(0.0, typical.ended - typical.records[-1]["time"] - last_look),
        look_seconds=statistics.median(looks or [0.0]), tokens=sum(record["tokens"] for record in warm), job=job)
