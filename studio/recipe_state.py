"""Which recipe the page shows, its draft on disk, and what its buttons do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from core.data.library import list_datasets
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.recipe.draft import delete_recipe, drop_draft, on_card, read_draft, save_draft, starting_text, write_draft
from core.recipe.files import change_recipe, dump_recipe, list_recipes, parse_recipe, presets
from core.recipe.schema import Recipe
from core.workspace import Workspace, slug
from studio.i18n import explain, language, say, say_plainly, t, t_plainly
from studio.panels import errors_in_words, go_to, watch_job
from studio.recipe_form import show_value
from studio.recipe_panels import YAML_REPLACED
from studio.session import DATASET, RECIPE

_ERROR = "recipe_error"
_BROWSER_LAG_SECONDS = 5.0


def choose_recipe(workspace: Workspace) -> str:
    """The recipe or preset to look at: own ones first; the address names it."""
    own = list_recipes(workspace)
    titles = {preset.name: say_plainly(preset.title) for preset in presets() if preset.name not in own}
    options = [*own, *titles]
    asked = st.query_params.get(RECIPE)
    if asked and asked not in options:
        st.warning(t("recipe.gone", name=asked), icon=":material/search_off:")
    show_value("recipe_name", asked if asked in options else next(iter(titles), options[0]))
    name = st.selectbox(
        t("recipe.recipe"), options, key="recipe_name", help=t("recipe.recipe_help"),
        format_func=lambda name: t_plainly("recipe.preset", title=titles[name]) if name in titles else name,
        on_change=lambda: st.query_params.update({RECIPE: st.session_state["recipe_name"]}))
    when = next((preset.when for preset in presets() if preset.name == name and name in titles), None)
    if when is not None:
        st.caption(say(when))
    return name


def take_dataset_from_address(workspace: Workspace, name: str) -> None:
    """A link from the Data page puts the recipe on its dataset, once; after that the reader's choices count."""
    wanted = st.query_params.get(DATASET)
    if wanted is None:
        return
    card = next((dataset.card for dataset in list_datasets(workspace) if dataset.card.name == wanted), None)
    if card is not None:
        with errors_in_words():
            text = read_draft(workspace, name) or starting_text(workspace, name, None, language())
            recipe = parse_recipe(text, "recipe")
            if {source.dataset for source in recipe.data.sources} != {wanted}:
                # From the preset's own sources, not from what is left of them on another dataset.
                text = starting_text(workspace, name, wanted, language()) if read_draft(workspace, name) is None else dump_recipe(
                    on_card(recipe, card), text)
                write_draft(workspace, name, text)
    del st.query_params[DATASET]


def change_fields(workspace: Workspace, name: str, changes: Callable[[Recipe], dict[str, Any]]) -> None:
    """Put a form's change into the draft; a change that is not allowed leaves it and is said.

    Two widgets may change before the page is drawn again, so each change starts from the draft as it is on disk.
    """
    try:
        text = read_draft(workspace, name) or starting_text(workspace, name, None, language())
        recipe = parse_recipe(text, "recipe")
        write_draft(workspace, name, dump_recipe(change_recipe(recipe, changes(recipe)), text))
    except StudioError as error:
        st.session_state[_ERROR] = explain(error)


def change_text(workspace: Workspace, name: str) -> None:
    """Put the editor's text into the draft, right or wrong.

    Right after a change in the form a browser may still send the text from before: it changed the next field before it had the new
    text. That is no edit, and would undo both changes.
    """
    text = st.session_state["recipe_yaml"]
    before, when = st.session_state.get(YAML_REPLACED, (None, 0.0))
    if text != before or time.monotonic() - when > _BROWSER_LAG_SECONDS:
        try:
            write_draft(workspace, name, text)
        except StudioError as error:
            st.session_state[_ERROR] = explain(error)


def draw_active_preparation(workspace: Workspace) -> None:
    """A change that was refused, and the embedded model while it is being prepared."""
    if refused := st.session_state.pop(_ERROR, None):
        st.error(refused, icon=":material/error:")
    for job, state in active_jobs(workspace):
        if state.kind == "prepare":
            with st.container(border=True):
                watch_job(str(job.folder))


def draw_saving(workspace: Workspace, name: str, text: str, is_changed: bool) -> str:
    """Name, save, discard, delete; returns the name to save under."""
    is_own = name in list_recipes(workspace)
    with st.container(border=True, key="recipe_saving"):
        if is_changed:
            st.caption(t("recipe.changed"))
        suggested = name if is_own else _free_name(workspace, text, name)
        new_name = st.text_input(t("recipe.name"), key=f"recipe_new_name_{name}", placeholder=suggested, max_chars=80,
                                 help=t("recipe.name_help")).strip() or suggested
        with st.container(horizontal=True):
            is_saved = is_own and not is_changed and new_name == name
            if st.button(t("recipe.save"), key="recipe_save", icon=":material/save:", disabled=is_saved):
                with errors_in_words():
                    _save(workspace, name, text, new_name)
                    st.rerun()
            if is_changed and st.button(t("recipe.discard"), key="recipe_discard", icon=":material/undo:", type="tertiary"):
                with errors_in_words():
                    drop_draft(workspace, name)
                    st.rerun()
            if is_own:
                with st.popover(t("recipe.delete"), icon=":material/delete:", type="tertiary", key="recipe_delete"):
                    st.markdown(t("recipe.delete_what", name=name))
                    if st.button(t("recipe.delete_now"), key="recipe_delete_now", icon=":material/delete:"):
                        with errors_in_words():
                            delete_recipe(workspace, name)
                            st.query_params.pop(RECIPE, None)
                            st.rerun()
    return new_name


def _free_name(workspace: Workspace, text: str, preset: str) -> str:
    """A name for what becomes of a preset: with its dataset, and a number when that is taken."""
    try:
        dataset = parse_recipe(text, "recipe").data.sources[0].dataset
    except StudioError:
        dataset = "my"
    wanted, number = slug(f"{dataset}-{preset}"), 1
    name = wanted
    while name in list_recipes(workspace):
        number += 1
        name = f"{wanted}-{number}"
    return name


def _save(workspace: Workspace, name: str, text: str, new_name: str) -> None:
    save_draft(workspace, name, text, new_name)
    st.query_params[RECIPE] = new_name
    st.toast(t("recipe.saved", name=new_name), icon=":material/check:")


def draw_going_on(workspace: Workspace, name: str, new_name: str, text: str, is_changed: bool, can_start: bool) -> None:
    """The way to the Train page; what is not saved yet is saved on the way."""
    needs_saving = is_changed or name not in list_recipes(workspace)
    st.divider()
    if st.button(t("recipe.next_save", name=new_name) if needs_saving else t("recipe.next"), type="primary", key="next_train",
                 icon=":material/arrow_forward:", disabled=not can_start):
        with errors_in_words():
            if needs_saving:
                _save(workspace, name, text, new_name)
            go_to("train", **{RECIPE: new_name if needs_saving else name})
    if not can_start:
        st.caption(t("recipe.next_waits"))
