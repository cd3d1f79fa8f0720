"""A long run is measured before it starts, unless somebody has measured it already."""

from __future__ import annotations

from core.errors import StudioError
from core.jobs.folder import Job
from core.recipe.forecast import forecast
from core.recipe.schema import Recipe
from core.recipe.trial import LONG_SECONDS, start_trial
from core.workspace import Workspace


def measure_first(workspace: Workspace, recipe: Recipe) -> Job | None:
    """Start a trial of a recipe that will train for long and was never measured; None when there is no need.

    The trial takes its place in the device's queue, so a run that is started right after it begins when it has ended.
    """
    try:
        known = forecast(workspace, recipe)
    except StudioError:
        return None  # the start will say what is wrong
    is_long = known.basis == "arithmetic" and known.seconds is not None and known.seconds >= LONG_SECONDS
    return start_trial(workspace, recipe) if is_long else None
