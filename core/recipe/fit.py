"""Rows at a time and recomputed activations, fitted to the device for the *same* effective batch: faster or smaller, the same training.

What would change the mathematics (fewer updates, a larger effective batch, fewer bits) is said, not done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.models.catalogue import find_local_base
from core.recipe.files import change_recipe
from core.recipe.forecast import Forecast, forecast, free_bytes
from core.recipe.memory import USABLE_SHARE, estimate_memory, gpu_count
from core.recipe.pace import training_seconds
from core.recipe.schema import Recipe
from core.words import Text
from core.workspace import Workspace

# With fewer tokens at a time a GPU waits for its kernels to start rather than for their work.
_FULL_GPU_TOKENS = 4096
# Below this a change is not worth proposing.
_NOTICED_GAIN = 1.1


@dataclass(frozen=True)
class Fit:
    """What to change so that the recipe fits the device well.

    Attributes:
        changes: recipe fields to set; empty when it fits as it is.
        rows: at a time, per GPU.
        accumulated: how many times so many rows make an update.
        memory_bytes: at the peak with the changes.
        free_bytes: of the device now.
        gain: how many times faster, by arithmetic; None when it cannot be told.
        notes: what was not done because it would be another training, and what is not possible.
    """

    changes: dict[str, Any]
    rows: int
    accumulated: int
    memory_bytes: int
    free_bytes: int
    gain: float | None
    notes: list[Text] = field(default_factory=list)

    @property
    def is_worth_it(self) -> bool:
        return bool(self.changes) and (self.gain is None or self.gain >= _NOTICED_GAIN)


def propose_fit(workspace: Workspace, recipe: Recipe, known: Forecast | None = None) -> Fit:
    """The fastest way to do the recipe's own updates within the memory that is free.

    Raises:
        StudioError: the model or a dataset is not here.
    """
    known = known or forecast(workspace, recipe)
    base = find_local_base(workspace, recipe.model.source)
    if base is None:
        raise StudioError("The model is not on this machine, so nothing can be fitted to it.",
                          "Fetch it first: `sweetspot models add`.")
    if known.memory is None or known.longest_tokens is None:
        raise StudioError("The rows of this recipe cannot be measured, so nothing can be fitted to them.",
                          "`sweetspot recipe check` says what is wrong with the recipe.")
    free = free_bytes(known.device)
    # Where a trial measured more or less than arithmetic counted, other sizes will differ alike.
    scale = known.memory_bytes / known.memory.total if known.basis == "trial" and known.memory_bytes else 1.0
    per_gpu = -(-recipe.schedule.effective_batch // gpu_count(recipe))
    for checkpointing in ("off", "on"):
        for accumulated in _accumulations(per_gpu):
            rows = -(-per_gpu // accumulated)
            tried = change_recipe(recipe, {"device.micro_batch": rows, "device.checkpointing": checkpointing})
            needed = round(scale * estimate_memory(base, tried, known.device, known.longest_tokens).total)
            if needed <= USABLE_SHARE * free:
                return _fit(recipe, tried, base, known, (rows, accumulated, needed, free))
    smallest = change_recipe(recipe, {"device.micro_batch": 1, "device.checkpointing": "on"})
    needed = round(scale * estimate_memory(base, smallest, known.device, known.longest_tokens).total)
    return Fit({}, 1, per_gpu, needed, free, None, [
        Text("Nothing fits: one row at a time with recomputed activations takes {needed} GB, and {free} GB are free.",
             needed=round(needed / 1e9, 1), free=round(free / 1e9, 1)), *_other_trainings(recipe)])


def _accumulations(rows: int) -> list[int]:
    """1, 2, 3, ... up to one row at a time; only those that make the rows at a time smaller."""
    counts: dict[int, int] = {}
    for accumulated in range(1, rows + 1):
        counts.setdefault(-(-rows // accumulated), accumulated)
    return list(counts.values())


def _fit(recipe: Recipe, tried: Recipe, base: Path, known: Forecast, found: tuple[int, int, int, int]) -> Fit:
    rows, accumulated, needed, free = found
    now, then = (training_seconds(base, one, known.device, known.tokens or 0, known.trained_tokens or 0, known.longest_tokens or 1)
                 for one in (recipe, tried))
    gain = now / then if now and then else None
    was_smaller = recipe.device.micro_batch is not None and recipe.device.micro_batch < rows
    was_larger = recipe.device.micro_batch is not None and recipe.device.micro_batch > rows
    changes: dict[str, Any] = {}
    if was_smaller or was_larger:
        changes["device.micro_batch"] = rows
    if recipe.device.checkpointing != tried.device.checkpointing:
        changes["device.checkpointing"] = tried.device.checkpointing
    if was_larger or (changes and tried.device.checkpointing == "on" and recipe.device.checkpointing == "off"):
        gain = None  # made smaller so that it fits: there is no faster or slower to compare with
    notes = []
    if known.device != "cpu" and rows * known.longest_tokens < _FULL_GPU_TOKENS and accumulated == 1:
        larger = -(-_FULL_GPU_TOKENS // max(1, known.longest_tokens)) * gpu_count(recipe)
        notes.append(Text(
            "An effective batch of {larger} instead of {batch} rows would keep this GPU busier. It would also be another training: {fewer} "
            "updates instead of {updates} for the same rows, each a calmer step, so it is not proposed.", larger=larger,
            batch=recipe.schedule.effective_batch, updates=known.plan.updates,
            fewer=max(1, known.plan.updates * recipe.schedule.effective_batch // larger)))
    return Fit(changes, rows, accumulated, needed, free, gain, notes)


def _other_trainings(recipe: Recipe) -> list[Text]:
    """Ways out that change what is learned, or how exactly."""
    ways = []
    if recipe.model.quantization == "none" and recipe.method.kind == "lora":
        ways.append(Text("model.quantization: nf4 would make it smaller. It rounds the base model, so the numbers change a little."))
    if recipe.method.kind == "full":
        ways.append(Text("method.kind: lora would make it much smaller. It is another training: small added matrices, not every weight."))
    ways.append(Text("A shorter data.max_length would make it smaller. It cuts the ends of long rows, which are then not learnt."))
    return ways
