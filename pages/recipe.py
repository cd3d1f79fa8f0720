"""Recipe: what will happen if I press start, and is anything wrong."""

from __future__ import annotations

import streamlit as st

from core.errors import StudioError
from core.recipe.draft import read_draft, starting_text
from core.recipe.files import parse_recipe
from studio.i18n import explain, language, t, t_plainly
from studio.panels import open_page, same_command
from studio.recipe_form import draw_form
from studio.recipe_import import draw_import
from studio.recipe_panels import draw_difference, draw_fault, draw_preflight, draw_yaml
from studio.recipe_state import (
    change_fields,
    change_text,
    choose_recipe,
    draw_active_preparation,
    draw_going_on,
    draw_saving,
    take_dataset_from_address,
)

PANELS = ("yaml", "difference")

workspace = open_page("recipe")
draw_active_preparation(workspace)
draw_import(workspace)
name = choose_recipe(workspace)
take_dataset_from_address(workspace, name)
try:
    saved = starting_text(workspace, name, None, language())
    draft = read_draft(workspace, name)
except StudioError as error:  # a file that may not be read, or that was given a name by hand which no recipe can have
    st.error(explain(error), icon=":material/error:")
    st.stop()
text = saved if draft is None else draft
is_changed = text != saved

try:
    recipe = parse_recipe(text, "recipe")
except StudioError as error:
    recipe = None
    draw_fault(error, text)

can_start = recipe is not None and draw_preflight(workspace, recipe, lambda changes: change_fields(workspace, name, changes))
form, beside = st.columns(2, gap="large")
with form:
    if recipe is None:
        st.info(t("recipe.form_waits"), icon=":material/edit_off:")
    else:
        draw_form(workspace, recipe, lambda changes: change_fields(workspace, name, changes))
with beside:
    panel = st.segmented_control(t("recipe.panel"), PANELS, default=PANELS[0], required=True, key="recipe_panel",
                                 label_visibility="collapsed", format_func=lambda panel: t_plainly(f"recipe.panel_{panel}"))
    if recipe is None or panel == "yaml":
        draw_yaml(text, lambda: change_text(workspace, name))
    else:
        draw_difference(workspace, recipe, name)
    new_name = draw_saving(workspace, name, text, is_changed)

draw_going_on(workspace, name, new_name, text, is_changed, can_start)
same_command(f"sweetspot recipe check {name}\nsweetspot train {name}")
