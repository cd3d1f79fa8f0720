"""What a recipe will do if it is started now: updates, exposures, snapshots, disk, and time and memory where they are founded.

Sizes follow from arithmetic on the model's header. Time and peak memory are taken from the newest finished run with the same model,
method and device, and are left open without one: a guess would look just like a measurement.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.data.library import Card, load_dataset
from core.data.measure import encoder_of, measure_dataset
from core.errors import StudioError
from core.machine import device_name
from core.models.catalogue import find_local_base
from core.models.header import read_header
from core.recipe.files import load_recipe
from core.recipe.plan import Plan, plan_updates
from core.recipe.schema import Recipe, Source
from core.runs import Run, list_runs
from core.train.create import lora_parameters, needed_bytes, snapshot_bytes
from core.workspace import Workspace, read_json

# Bytes of one weight in memory; 4 bits and 8 bits without the scales that come on top, so that the sum stays a lower bound.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 0.5, "int8": 1.0}
_RUNS_LOOKED_AT = 40


@dataclass(frozen=True)
class SourceUse:
    """How one source is used: its rows, its share of every update (0 to 1), how often each of its rows is seen."""

    dataset: str
    groups: list[str] | None
    rows: int
    share: float
    exposures: float


@dataclass(frozen=True)
class Forecast:
    """What will happen. None where it cannot be told yet.

    Attributes:
        plan: updates, snapshots, exposures over all sources.
        sources: how each source is used.
        device: the device that the run will queue for.
        snapshot_bytes: of one snapshot.
        disk_bytes: of all snapshots and the state for a resume.
        least_memory_bytes: weights, adapter, gradients and optimizer; activations come on top.
        seconds: of the training, without the judging afterwards.
        memory_bytes: the peak of the run that `measured_on` names.
        tokens: that the training reads, padding aside.
        measured_on: id of the run that time and memory come from.
    """

    plan: Plan
    sources: list[SourceUse]
    device: str
    snapshot_bytes: int | None = None
    disk_bytes: int | None = None
    least_memory_bytes: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    tokens: int | None = None
    measured_on: str | None = None


def rounded(times: float) -> float:
    """How often a row is seen, as people say it: 0.36, 1.5, 125."""
    return round(times) if times >= 20 else round(times, 1) if times >= 1 else round(times, 2)


def forecast(workspace: Workspace, recipe: Recipe) -> Forecast:
    """Say what a recipe will do; loads no weights, fetches nothing.

    Raises:
        StudioError: a dataset is missing or gives no rows.
    """
    counts = [selected_rows(load_dataset(workspace, source.dataset).card, source) for source in recipe.data.sources]
    plan = plan_updates(recipe, sum(counts))
    weights = sum(source.weight for source in recipe.data.sources)
    seen = plan.updates * recipe.schedule.effective_batch
    shares = [source.weight / weights for source in recipe.data.sources]
    uses = [SourceUse(source.dataset, source.groups, count, share, seen * share / count if count else 0.0)
            for source, share, count in zip(recipe.data.sources, shares, counts, strict=True)]
    known = Forecast(plan, uses, run_device(recipe))
    try:
        return _measured(workspace, recipe, _sized(workspace, recipe, known))
    except StudioError:
        return known  # what is wrong with the model or its tokenizer is said by the checks


def selected_rows(card: Card, source: Source) -> int:
    """Rows of a dataset that a source selects, by its card."""
    return card.rows if source.groups is None else sum(card.groups.get(group, 0) for group in source.groups)


def run_device(recipe: Recipe) -> str:
    """The device a run of this recipe waits for."""
    return "cpu" if recipe.device.kind == "cpu" else device_name()


def _sized(workspace: Workspace, recipe: Recipe, known: Forecast) -> Forecast:
    one = snapshot_bytes(workspace, recipe) if find_local_base(workspace, recipe.model.source) or _is_embedded(recipe) else None
    if one is None:
        return known
    return replace(known, snapshot_bytes=one, disk_bytes=needed_bytes(one, known.plan, recipe.method.kind),
                   least_memory_bytes=_least_memory(workspace, recipe, known.device))


def _is_embedded(recipe: Recipe) -> bool:
    return recipe.model.source == "embedded"


def _least_memory(workspace: Workspace, recipe: Recipe, device: str) -> int | None:
    base = find_local_base(workspace, recipe.model.source)
    if base is None:
        return None
    parameters = read_header(base).parameters
    dtype = recipe.model.dtype if recipe.model.dtype != "auto" else "float32" if device == "cpu" else "bfloat16"
    if recipe.method.kind == "full":
        return round(parameters * _BYTES[dtype] * 4)  # weights, gradients and two moments of AdamW, all alike
    held = _BYTES[dtype if recipe.model.quantization == "none" else recipe.model.quantization]
    return round(parameters * held + lora_parameters(base, recipe) * 16)  # the same four in float32


def _measured(workspace: Workspace, recipe: Recipe, known: Forecast) -> Forecast:
    base = find_local_base(workspace, recipe.model.source)
    if base is None:
        return known
    encoder = encoder_of(base, recipe.data.system)
    means = [measure_dataset(load_dataset(workspace, source.dataset), encoder, source.groups, recipe.data.train_on)
             for source in recipe.data.sources]
    per_row = sum(use.share * mean.mean_below(recipe.data.max_length) for use, mean in zip(known.sources, means, strict=True))
    tokens = round(known.plan.updates * recipe.schedule.effective_batch * per_row)
    like = newest_run_like(workspace, recipe, known.device)
    if like is None:
        return replace(known, tokens=tokens)
    run, speed, memory = like
    return replace(known, tokens=tokens, seconds=tokens / speed, memory_bytes=memory, measured_on=run.id)


def newest_run_like(workspace: Workspace, recipe: Recipe, device: str) -> tuple[Run, float, int] | None:
    """The newest finished run with the same model, method and device: the run, its tokens per second, its peak memory in bytes."""
    for run in list_runs(workspace)[:_RUNS_LOOKED_AT]:
        try:
            path = run.folder / "recipe.yaml"
            if read_json(run.folder / "environment.json").get("device") != device or run.state().state != "finished":
                continue
            if not _alike(_recipe_kept(path, path.stat().st_mtime_ns), recipe):
                continue
            pace = _pace(run, (run.folder / "metrics.jsonl").stat().st_mtime_ns)
        except (OSError, ValueError, StudioError):
            continue
        if pace is not None:
            return run, *pace
    return None


@lru_cache(maxsize=16)
def _pace(run: Run, stamp: int) -> tuple[float, int] | None:
    """Median tokens per second and peak memory in bytes, from metrics last written at `stamp`."""
    records = run.metrics()
    records = records[1:] or records  # the first update warms caches up
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second")]
    return (statistics.median(speeds), max(record.get("memory_bytes", 0) for record in records)) if speeds else None


@lru_cache(maxsize=64)
def _recipe_kept(path: Path, stamp: int) -> Recipe:
    return load_recipe(path)


def _alike(a: Recipe, b: Recipe) -> bool:
    def kind(recipe: Recipe) -> tuple[Any, ...]:
        return (recipe.model, recipe.method.kind, recipe.method.rank, recipe.device.checkpointing)
    return kind(a) == kind(b)
