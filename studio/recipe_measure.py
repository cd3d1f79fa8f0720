"""On the preflight card: the trial that measures a recipe, and what fits the device better for the same training."""

from __future__ import annotations

import streamlit as st

from core.errors import StudioError
from core.recipe.diff import value_text
from core.recipe.fit import propose_fit
from core.recipe.forecast import Forecast
from core.recipe.schema import Recipe
from core.recipe.trial import active_trial, start_trial
from core.workspace import Workspace
from studio.i18n import explain, say, t
from studio.panels import watch_job
from studio.recipe_form import Change


def draw_measuring(workspace: Workspace, recipe: Recipe, known: Forecast, can_start: bool) -> None:
    """The button that measures, or the measuring itself."""
    job = active_trial(workspace, recipe)
    if job is not None:
        st.caption(t("recipe.measuring"))
        watch_job(str(job.folder))
        return
    if known.basis != "trial" and st.button(t("recipe.measure"), key="recipe_measure", icon=":material/speed:", type="tertiary",
                                            help=t("recipe.measure_help"), disabled=not can_start):
        try:
            start_trial(workspace, recipe)
        except StudioError as error:
            st.error(explain(error), icon=":material/error:")
        else:
            st.rerun()


def draw_fit(workspace: Workspace, recipe: Recipe, known: Forecast, change: Change) -> None:
    """A proposal for the same training that is faster, or that fits; and what would be another training."""
    found = propose_fit(workspace, recipe, known)
    if found.is_worth_it:
        changes = ", ".join(f"{path}: {value_text(value)}" for path, value in found.changes.items())
        if found.gain is None:
            st.markdown(t("recipe.fit_smaller", rows=found.rows, times=found.accumulated, changes=changes))
        else:
            st.markdown(t("recipe.fit_better", rows=found.rows, times=found.accumulated, changes=changes, gain=f"{found.gain:.1f}"))
        st.button(t("recipe.fit_now"), key="recipe_fit", icon=":material/tune:", on_click=change, args=(lambda _: found.changes,))
    for note in found.notes:
        st.caption(say(note))
