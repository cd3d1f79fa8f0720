"""Beside the recipe's form: what will happen if it is started, its YAML, and how it differs from others."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import streamlit as st

from core.data.library import list_datasets
from core.errors import StudioError
from core.models.prepare import prepare_once
from core.recipe.checks import Finding, check_recipe
from core.recipe.diff import diff_recipes, value_text
from core.recipe.document import RecipeError
from core.recipe.draft import on_card
from core.recipe.files import find_recipe, list_recipes, presets
from core.recipe.forecast import Forecast, forecast, rounded
from core.recipe.schema import Recipe
from core.recipe.setting import setting_at
from core.workspace import Workspace
from studio.i18n import explain, plain, say, say_plainly, t, t_plainly
from studio.moments import duration
from studio.recipe_form import Change, show_value
from studio.recipe_measure import draw_fit, draw_measuring

_MARKS = {"error": (":material/error:", "red"), "warning": (":material/warning:", "orange")}
_CONTEXT_LINES = 3
_LONGEST_LINE = 200  # characters of a line that are shown beside a fault
_SMALLEST_PART = 5e6  # bytes; smaller parts of the memory are not named
YAML_REPLACED = "recipe_yaml_replaced"  # the editor's text before the form changed it, and when that was


def draw_preflight(workspace: Workspace, recipe: Recipe, change: Change) -> bool:
    """What will happen, what speaks against it, and what fits better; returns whether it can be started."""
    findings = check_recipe(workspace, recipe)
    errors = sum(finding.level == "error" for finding in findings)
    with st.container(border=True, key="recipe_preflight"):
        if errors:
            st.badge(t("recipe.cannot_start", count=errors), icon=":material/block:", color="red")
        elif findings:
            st.badge(t("recipe.may_start", count=len(findings)), icon=":material/warning:", color="orange")
        else:
            st.badge(t("recipe.all_clear"), icon=":material/check_circle:", color="green")
        for finding in findings:
            _draw_finding(workspace, finding)
        try:
            known = forecast(workspace, recipe)
            _draw_forecast(known, recipe.snapshots.spacing == "events")
            if known.memory is not None:
                draw_measuring(workspace, recipe, known, errors == 0)
                draw_fit(workspace, recipe, known, change)
        except StudioError:
            pass  # the findings say why nothing can be told
    return errors == 0


def _draw_finding(workspace: Workspace, finding: Finding) -> None:
    icon, colour = _MARKS[finding.level]
    field = f" :small[{plain(finding.field)}]" if finding.field else ""
    st.markdown(f":{colour}[{icon}] {say(finding.text)}{field}  \n:material/arrow_forward: {say(finding.fix)}")
    if finding.code == "not_prepared" and st.button(t("recipe.prepare"), key="recipe_prepare", icon=":material/build:"):
        prepare_once(workspace)
        st.rerun()


def _draw_forecast(known: Forecast, is_by_events: bool) -> None:
    plan, about = known.plan, "≈ " if known.basis == "arithmetic" else ""
    figures = [("updates", f"{plan.updates:,}"), ("snapshots", str(len(plan.snapshot_steps))),
               ("exposures", t_plainly("recipe.times", count=f"{rounded(plan.exposures_per_row):,}")),
               ("time", about + duration(known.seconds) if known.seconds else t_plainly("recipe.unknown")),
               ("memory", about + _size(known.memory_bytes) if known.memory_bytes else t_plainly("recipe.unknown")),
               ("disk", _size(known.disk_bytes) if known.disk_bytes else t_plainly("recipe.unknown"))]
    with st.container(horizontal=True, gap="medium", key="recipe_figures"):
        for key, value in figures:
            st.metric(t(f"recipe.{key}"), value, help=t(f"recipe.{key}_help"), width="content")
    steps = (", ".join(map(str, plan.snapshot_steps)) if len(plan.snapshot_steps) <= 40 else
             t_plainly("recipe.steps_shortened", first=", ".join(map(str, plan.snapshot_steps[:6])), last=plan.snapshot_steps[-1]))
    st.caption(t("recipe.snapshots_by_events" if is_by_events else "recipe.snapshots_at", count=len(plan.snapshot_steps), steps=steps))
    if known.tokens is not None:
        st.caption(t("recipe.tokens", tokens=f"{known.tokens:,}", trained=f"{known.trained_tokens:,}", longest=known.longest_tokens))
    if len(known.sources) > 1:
        names = ("dataset", "share", "rows", "times_seen")
        st.dataframe([dict(zip((t_plainly(f"recipe.column_{name}") for name in names), (
            use.dataset + (f" ({', '.join(use.groups)})" if use.groups else ""), f"{use.share:.0%}", use.rows, rounded(use.exposures)),
            strict=True)) for use in known.sources], hide_index=True, alt=t_plainly("recipe.sources_alt"))
    if known.memory is not None:
        parts = [(t_plainly(f"recipe.part_{part}"), size) for part, size in asdict(known.memory).items() if size >= _SMALLEST_PART]
        st.caption(t("recipe.parts", parts=", ".join(f"{name} {_size(size)}" for name, size in parts)))
    st.caption(_founded(known))


def _founded(known: Forecast) -> str:
    """Where time and memory come from."""
    where = t("recipe.on_device", device=known.device) if known.device != "cpu" else t("recipe.on_processor")
    if known.basis is None:
        return where
    return where + " " + t(f"recipe.basis_{known.basis}", run=known.measured_on or "")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"


def draw_fault(error: StudioError, text: str) -> None:
    """What is wrong with the text, and its lines around the place."""
    st.error(explain(error), icon=":material/error:")
    line = error.line if isinstance(error, RecipeError) else None
    if line:
        lines = text.split("\n")
        first = max(1, line - _CONTEXT_LINES)
        shown = [f"{'>' if number == line else ' '} {number:4}  {_in_short(lines[number - 1])}"
                 for number in range(first, min(len(lines), line + _CONTEXT_LINES) + 1)]
        st.code("\n".join(shown), language=None)


def _in_short(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + "…"


def draw_yaml(text: str, on_change: Any) -> None:
    """The editor; what is typed here and what the form says are the same text."""
    before = st.session_state.get("recipe_yaml")
    show_value("recipe_yaml", text)
    if before not in (None, text):
        st.session_state[YAML_REPLACED] = (before, time.monotonic())
    st.text_area(t("recipe.yaml"), key="recipe_yaml", height=560, on_change=on_change, help=t("recipe.yaml_help"))
    st.caption(t("recipe.yaml_note"))


def draw_difference(workspace: Workspace, recipe: Recipe, name: str) -> None:
    """Changed fields only, against a preset or another recipe."""
    own = list_recipes(workspace)
    others = [*(other for other in own if other == name), *(preset.name for preset in presets() if preset.name not in own),
              *(other for other in own if other != name)]
    titles = {preset.name: say_plainly(preset.title) for preset in presets()}
    chosen = st.selectbox(t("recipe.compare_with"), others, key="recipe_other", format_func=lambda other: t_plainly(
        "recipe.saved_version", name=other) if other == name and other in own else titles.get(other, other))
    try:
        other = find_recipe(workspace, chosen)
    except StudioError as error:
        st.error(explain(error), icon=":material/error:")
        return
    if chosen in titles and chosen not in own:
        cards = {dataset.card.name: dataset.card for dataset in list_datasets(workspace)}
        card = cards.get(recipe.data.sources[0].dataset)
        other = on_card(other, card) if card else other
    changes = diff_recipes(other, recipe)
    if not changes:
        st.success(t("recipe.no_difference"), icon=":material/check_circle:")
        return
    columns = [t_plainly(f"recipe.column_{name}") for name in ("field", "theirs", "mine")]
    st.dataframe([dict(zip(columns, (say_plainly(setting_at(Recipe, change.path).label) + f" ({change.path})", value_text(change.a),
                                     value_text(change.b)), strict=True)) for change in changes],
                 hide_index=True, alt=t_plainly("recipe.difference_alt"))

