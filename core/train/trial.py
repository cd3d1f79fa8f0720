"""The work of a `trial` job: three updates on the longest rows for the memory, a few on the recipe's own for the time.

Both are real trainings by the worker that will train, in the job's own folder, which is emptied afterwards: what is measured is what
will run.
"""

from __future__ import annotations

import importlib
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from core.data.encode import Encoder
from core.data.library import load_dataset, save_dataset
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.models.catalogue import find_base
from core.models.embedded import EMBEDDED_NAME, prepare_embedded
from core.recipe.files import change_recipe, dump_recipe, load_recipe
from core.recipe.memory import gpu_count
from core.recipe.schema import Recipe
from core.recipe.trial import Measured, keep_trial
from core.runs import Run
from core.workspace import Workspace, read_jsonl, write_text

LONGEST_UPDATES = 3
# The first one warms up and is not counted.
TIMED_UPDATES = 5
_DATASET = "longest"


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
        alone = _on_one_device(recipe)
        longest = _train(_with_longest_rows(workspace, alone, folder), _shortened(alone, LONGEST_UPDATES, _DATASET, workspace),
                         folder / "longest", recorder)
        if len(longest.records) < LONGEST_UPDATES:
            return {"stopped": True}
        typical = _train(workspace, _shortened(alone, TIMED_UPDATES), folder / "typical", recorder)
        if len(typical.records) < TIMED_UPDATES:
            return {"stopped": True}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measured = _measured(longest, typical, imports, job.id)
    keep_trial(workspace, recipe, measured)
    return {"memory_bytes": measured.memory_bytes, "seconds_per_token": measured.seconds_per_token}


class _Try:
    """One short training: when it began and ended, and what it recorded."""

    def __init__(self, began: float, ended: float, records: list[dict[str, Any]], looks: list[dict[str, Any]]) -> None:
        self.began, self.ended, self.records, self.looks = began, ended, records, looks


def _train(workspace: Workspace, recipe: Recipe, folder: Path, recorder: Recorder) -> _Try:
    from core.train.worker import train_job

    folder.mkdir(parents=True)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    began = time.time()
    train_job(workspace, Run(folder), recorder)
    return _Try(began, time.time(), read_jsonl(folder / "metrics.jsonl"), read_jsonl(folder / "watch.jsonl"))


def _on_one_device(recipe: Recipe) -> Recipe:
    """Of several GPUs that share the rows, the share of one."""
    ranks = gpu_count(recipe)
    if ranks == 1:
        return recipe
    return change_recipe(recipe, {"device.gpus": "auto", "schedule.effective_batch": -(-recipe.schedule.effective_batch // ranks)})


def _shortened(recipe: Recipe, updates: int, dataset: str = "", workspace: Workspace | None = None) -> Recipe:
    changes: dict[str, Any] = {"schedule.updates": updates, "snapshots.count": 1, "early_stop.on_alert": "off", "log.to": "none"}
    if dataset and workspace is not None:
        changes |= {"data.sources": [{"dataset": dataset}], "probes.dataset": None,
                    "model.source": str(find_base(workspace, recipe.model.source))}
    return change_recipe(recipe, changes)


def _with_longest_rows(workspace: Workspace, recipe: Recipe, folder: Path) -> Workspace:
    """A workspace of its own that holds nothing but the longest rows of the recipe's sources, as many as an update sees."""
    encoder = Encoder.from_folder(find_base(workspace, recipe.model.source), recipe.data.system)
    lengths: list[tuple[int, int, dict[str, Any]]] = []
    for source in recipe.data.sources:
        for row in load_dataset(workspace, source.dataset).rows(source.groups):
            try:
                encoded = encoder.encode(row["messages"], recipe.data.train_on, recipe.data.max_length)
            except StudioError:
                continue  # the template refuses it; the checks say so
            if any(encoded.trained):
                lengths.append((len(encoded.ids), len(lengths), row))
    lengths.sort(reverse=True)
    place = Workspace.open(folder / "workspace")
    save_dataset(place, _DATASET, [row for *_, row in lengths[:recipe.schedule.effective_batch]], "trial")
    return place


def _measured(longest: _Try, typical: _Try, imports: float, job: str) -> Measured:
    first, *warm = typical.records
    tokens = sum(record["tokens"] for record in warm)
    per_token = sum(record["seconds"] for record in warm) / tokens
    startup = first["time"] - first["seconds"] - typical.began
    looking = sum(look.get("seconds", 0.0) for look in typical.looks)
    saving = max(0.0, typical.ended - typical.records[-1]["time"] - looking)
    usual = statistics.median(record["seconds"] for record in warm)
    return Measured(
        memory_bytes=max(record["memory_bytes"] for record in longest.records), seconds_per_token=per_token,
        startup_seconds=imports + startup, warmup_seconds=max(0.0, first["seconds"] - usual), snapshot_seconds=saving,
        look_seconds=looking / max(1, len(typical.looks)), tokens=tokens, job=job)
