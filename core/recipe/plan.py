"""From a recipe and a number of rows to updates, snapshots and exposures: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import StudioError
from core.recipe.schema import Recipe
from core.train.looks import MOST_LOOKS


@dataclass(frozen=True)
class Plan:
    """What a training will do, known before it starts.

    Attributes:
        updates: how often the weights change.
        snapshot_steps: the updates after which a checkpoint is saved, increasing; the last one is `updates`.
            Step 0, the base model, is not in it.
        exposures_per_row: how often a row is seen on average over all sources.
        warmup_updates: updates with a rising learning rate, at most a tenth of the run.
    """

    updates: int
    snapshot_steps: list[int]
    exposures_per_row: float
    warmup_updates: int

    @property
    def looks(self) -> int:
        """How often the probes are looked at during the training, at most (core.train.looks)."""
        return min(self.updates, MOST_LOOKS)


def plan_updates(recipe: Recipe, rows: int) -> Plan:
    """The plan for a training on `rows` rows (all sources together).

    Raises:
        StudioError: there are no rows.
    """
    if rows < 1:
        raise StudioError(
            "The recipe selects no rows to train on.",
            "Check `groups` in data.sources, or add rows to the dataset; "
            "`sweetspot data show` counts them per group.",
        )
    schedule = recipe.schedule
    if schedule.updates is not None:
        updates = schedule.updates
    else:
        # Rounded up so that "1 epoch" leaves no row out; the tiny term keeps 0.1 * 30 from becoming 4.
        updates = max(1, math.ceil(schedule.epochs * rows / schedule.effective_batch - 1e-9))
    return Plan(
        updates=updates,
        snapshot_steps=snapshot_steps(recipe, updates),
        exposures_per_row=updates * schedule.effective_batch / rows,
        warmup_updates=warmup_updates(recipe, updates),
    )


def warmup_updates(recipe: Recipe, updates: int) -> int:
    """The recipe's warm-up, cut to a tenth of the run: one that swallows a short run would train nothing."""
    schedule = recipe.schedule
    return min(max(schedule.warmup_updates, round(schedule.warmup_ratio * updates)), updates // 10)


def snapshot_steps(recipe: Recipe, updates: int) -> list[int]:
    """The updates after which a checkpoint is saved.

    Strictly increasing, the last one is `updates`; `snapshots.count` of them, or `updates` if that is less. By events this is what a
    run saves in which nothing happens (core.train.events).
    """
    count = min(recipe.snapshots.count, updates)
    steps: list[int] = []
    for number in range(1, count + 1):
        if recipe.snapshots.spacing != "early":
            wanted = (2 * number * updates + count) // (2 * count)
        else:
            # Distances grow evenly (a square): half of the snapshots fall in the first quarter of the run.
            wanted = (2 * number**2 * updates + count**2) // (2 * count**2)
        latest = updates - (count - number)  # leaves one update for each snapshot to come
        steps.append(max(min(wanted, latest), steps[-1] + 1 if steps else 1))
    return steps
