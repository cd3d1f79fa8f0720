"""What a recipe will do if it is started now: updates, exposures, snapshots, disk, memory by part and time.

Sizes follow from arithmetic on the model's header. Time and peak memory are measured where they can be: by a trial of this recipe, else
taken from the newest finished run like it. Where neither is there, arithmetic gives a first guess, and `basis` says so.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil

from core.data.library import Card, load_dataset
from core.data.measure import Measure, encoder_of, measure_dataset
from core.errors import StudioError
from core.machine import device_name, read_gpus
from core.models.catalogue import find_local_base
from core.recipe.files import load_recipe
from core.recipe.memory import RUNTIME_BYTES, Memory, estimate_memory
from core.recipe.pace import estimate_seconds
from core.recipe.plan import Plan, plan_updates
from core.recipe.schema import Recipe, Source
from core.recipe.trial import read_trial
from core.runs import Run, list_runs
from core.train.create import needed_bytes, snapshot_bytes
from core.train.devices import choose_devices
from core.workspace import Workspace, read_json

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
        memory: by part, from arithmetic.
        tokens: that the training reads, padding aside.
        trained_tokens: of these, how many are targets of the loss.
        longest_tokens: the longest row, cut at the recipe's limit.
        seconds: of the training, without the judging afterwards.
        memory_bytes: at the peak.
        basis: where `seconds` and `memory_bytes` come from: a trial of this recipe, a run like it, or arithmetic.
        measured_on: id of that trial or run.
    """

    plan: Plan
    sources: list[SourceUse]
    device: str
    snapshot_bytes: int | None = None
    disk_bytes: int | None = None
    memory: Memory | None = None
    tokens: int | None = None
    trained_tokens: int | None = None
    longest_tokens: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    basis: Literal["trial", "run", "arithmetic"] | None = None
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
        known = _counted(workspace, recipe, _sized(workspace, recipe, known))
        return _measured(workspace, recipe, known)
    except StudioError:
        return known  # what is wrong with the model or its tokenizer is said by the checks


def selected_rows(card: Card, source: Source) -> int:
    """Rows of a dataset that a source selects, by its card."""
    return card.rows if source.groups is None else sum(card.groups.get(group, 0) for group in source.groups)


def run_device(recipe: Recipe) -> str:
    """The devices a run of this recipe waits for, as in `cuda:0,cuda:1`."""
    try:
        return choose_devices(recipe).name
    except StudioError:  # this machine has fewer; the checks say so
        return device_name()


def _sized(workspace: Workspace, recipe: Recipe, known: Forecast) -> Forecast:
    one = snapshot_bytes(workspace, recipe) if find_local_base(workspace, recipe.model.source) or _is_embedded(recipe) else None
    if one is None:
        return known
    return replace(known, snapshot_bytes=one,
                   disk_bytes=needed_bytes(one, known.plan, recipe.method.kind, recipe.early_stop.on_alert))


def _is_embedded(recipe: Recipe) -> bool:
    return recipe.model.source == "embedded"


def free_bytes(device: str) -> int:
    """Memory that is free now, on the fullest of the devices; on a processor, without what the libraries of a worker will take."""
    if device == "cpu":
        return int(psutil.virtual_memory().available - RUNTIME_BYTES)
    return min((gpu.free_bytes for gpu in read_gpus() if f"cuda:{gpu.index}" in device.split(",")), default=0)


def _counted(workspace: Workspace, recipe: Recipe, known: Forecast) -> Forecast:
    """Tokens, and the memory by part."""
    base = find_local_base(workspace, recipe.model.source)
    if base is None:
        return known
    encoder = encoder_of(base, recipe.data.system)
    measures = [measure_dataset(load_dataset(workspace, source.dataset), encoder, source.groups, recipe.data.train_on)
                for source in recipe.data.sources]
    limit = recipe.data.max_length
    known = _in_pieces(recipe, known, measures)
    rows = known.plan.updates * recipe.schedule.effective_batch
    tokens = rows * sum(use.share * measure.mean_below(limit) for use, measure in zip(known.sources, measures, strict=True))
    trained = rows * sum(use.share * _mean_trained(measure, limit) for use, measure in zip(known.sources, measures, strict=True))
    longest = max(min(limit, max(measure.tokens, default=1)) for measure in measures)
    memory = estimate_memory(base, recipe, known.device, longest, free_bytes(known.device))
    return replace(known, tokens=round(tokens), trained_tokens=round(trained), longest_tokens=longest, memory=memory)


def _in_pieces(recipe: Recipe, known: Forecast, measures: list[Measure]) -> Forecast:
    """Where rows are plain documents, each piece of a long one counts as a row (core.train.rows)."""
    factors = [measure.mean_pieces(recipe.data.max_length) for measure in measures]
    if all(factor == 1 for factor in factors):
        return known
    counts = [max(1, round(use.rows * factor)) for use, factor in zip(known.sources, factors, strict=True)]
    plan = plan_updates(recipe, sum(counts))
    seen = plan.updates * recipe.schedule.effective_batch
    uses = [replace(use, rows=count, exposures=seen * use.share / count) for use, count in zip(known.sources, counts, strict=True)]
    return replace(known, plan=plan, sources=uses)


def _mean_trained(measure: Measure, limit: int) -> float:
    """Trained tokens of a row; of a row that is cut, as large a part as of its tokens."""
    return measure.mean_trained * measure.mean_below(limit) / max(1.0, measure.mean_tokens)


def _measured(workspace: Workspace, recipe: Recipe, known: Forecast) -> Forecast:
    """Time and peak memory, from what is nearest to this recipe."""
    base = find_local_base(workspace, recipe.model.source)
    if base is None or known.tokens is None or known.memory is None:
        return known
    trial = read_trial(workspace, recipe)
    if trial is not None:
        return replace(known, seconds=trial.seconds(known.tokens, known.plan), memory_bytes=trial.memory_bytes, basis="trial",
                       measured_on=trial.job)
    like = newest_run_like(workspace, recipe, known.device)
    if like is not None:
        run, speed, memory = like
        return replace(known, seconds=known.tokens / speed, memory_bytes=memory, basis="run", measured_on=run.id)
    seconds = estimate_seconds(base, recipe, known.device, known.tokens, known.trained_tokens or 0, known.longest_tokens or 1,
                               known.plan.looks)
    return replace(known, seconds=seconds, memory_bytes=known.memory.total, basis="arithmetic")


def newest_run_like(workspace: Workspace, recipe: Recipe, device: str) -> tuple[Run, float, int] | None:
    """The newest finished run that does the same per update on this device: itself, its tokens per second, its peak memory in bytes."""
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
    """Whether an update of both does the same work, on the same rows; length of the run, learning rate and seed do not matter."""
    def kind(recipe: Recipe) -> tuple[Any, ...]:
        return recipe.model, recipe.method, recipe.data, recipe.schedule.effective_batch, recipe.device
    return kind(a) == kind(b)
