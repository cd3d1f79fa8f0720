"""A recipe's form, drawn from what its fields say about themselves: basic ones first, expert ones folded.

Every widget shows the recipe's value and hands a new one to `change`; nothing is kept here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import streamlit as st

from core.data.library import list_datasets
from core.models.catalogue import list_models
from core.recipe.faults import kinds_at
from core.recipe.schema import Recipe
from core.recipe.setting import RecipeField, fields, sections
from core.words import Text
from core.workspace import Workspace
from studio.i18n import say, say_plainly, t, t_plainly

# Takes what makes `{path: new value}` of the recipe as it is at that moment.
Change = Callable[[Callable[[Recipe], dict[str, Any]]], None]

# What one press of + or - adds; the schema knows limits, not habits.
_STEPS = {"schedule.learning_rate": 1e-5, "schedule.epochs": 0.5, "method.dropout": 0.05, "schedule.weight_decay": 0.01,
          "schedule.warmup_ratio": 0.01, "schedule.clip_norm": 0.1}
_MAY_BE_LEFT_OUT = {"device.micro_batch"}
_LENGTHS = ("schedule.updates", "schedule.epochs")
_DROP = "recipe_drop"


def draw_form(workspace: Workspace, recipe: Recipe, change: Change) -> None:
    """The whole form; `change` is called when a reader changes a field."""
    drawn = [field for field in fields(recipe) if _is_shown(recipe, field) and not field.path.startswith("data.sources")]
    alone: list[RecipeField] = []  # the only basic field of its section needs no heading; such fields share lines at the end
    for name, heading in {"": None, **sections(Recipe)}.items():
        mine = [field for field in drawn if field.setting.level == "basic" and _section(field) == name]
        if heading is not None and name != "data" and len(mine) < 2:
            alone += mine
            continue
        if heading is not None:
            st.markdown(f"**{say(heading.label)}**", help=say(heading.help))
        if name == "data":
            _draw_sources(workspace, recipe, change)
        _draw_fields(workspace, recipe, mine, change)
    _draw_fields(workspace, recipe, alone, change)
    with st.expander(t("recipe.expert"), icon=":material/tune:"):
        for name, heading in sections(Recipe).items():
            mine = [field for field in drawn if field.setting.level == "expert" and _section(field) == name]
            if mine:
                st.markdown(f"**{say(heading.label)}**")
                _draw_fields(workspace, recipe, mine, change)


def _section(field: RecipeField) -> str:
    return field.path.rpartition(".")[0].split(".")[0]


def _is_shown(recipe: Recipe, field: RecipeField) -> bool:
    """Whether the field matters while the others are as they are."""
    if field.path == "schedule.epochs":
        return False  # drawn with updates, as one choice
    if field.setting.shown_if is None:
        return True
    path, values = field.setting.shown_if
    return next(other.default for other in fields(recipe) if other.path == path) in values


def _draw_fields(workspace: Workspace, recipe: Recipe, mine: list[RecipeField], change: Change) -> None:
    """Fields in two columns; a text that may be long gets a line of its own."""
    place: list[Any] = []
    for field in mine:
        if field.path in ("title", "data.system"):
            _draw_field(workspace, recipe, field, change)
            continue
        if field.path == "schedule.updates":
            _draw_length(recipe, change)
            continue
        place = place or list(st.columns(2))
        with place.pop(0):
            _draw_field(workspace, recipe, field, change)


def _draw_field(workspace: Workspace, recipe: Recipe, field: RecipeField, change: Change) -> None:
    path, about, value = field.path, field.setting, field.default
    words = {"label": label_of(field), "help": help_of(field), "key": f"recipe_{path}"}
    kinds = kinds_at(path)

    def give(convert: Callable[[Any], Any] = lambda given: given) -> dict[str, Any]:
        return {"on_change": lambda: change(lambda _: {path: convert(st.session_state[words["key"]])})}

    if path == "model.source":
        models = ["embedded", *(name for name, *_ in list_models(workspace))]
        show_value(words["key"], value)
        st.selectbox(options=list(dict.fromkeys([*models, value])), accept_new_options=True, **words, **give())
    elif path == "probes.dataset":
        names = [dataset.card.name for dataset in list_datasets(workspace) if dataset.card.probes]
        show_value(words["key"], value or "")  # None would be shown as nothing chosen
        st.selectbox(options=list(dict.fromkeys(["", *names, value or ""])), **words, **give(lambda name: name or None),
                     format_func=lambda name: name or t_plainly("recipe.first_dataset"))
    elif about.choices:
        meanings = dict(about.choices)
        show_value(words["key"], value)
        st.selectbox(options=list(meanings), **words, **give(), format_func=lambda name: say_plainly(
            Text("{name}: {meaning}", name=name, meaning=meanings[name])))
    elif bool in kinds:
        show_value(words["key"], value)
        st.toggle(**words, **give())
    elif list in kinds:
        show_value(words["key"], _in_one_line(value))
        st.text_input(**words, **give(_numbers_or_word if int in kinds else _names_or_word))
    elif kinds & {int, float}:
        _draw_number(path, about.minimum, about.maximum, value, float in kinds, words, give)
    elif path == "data.system":
        _draw_system(value, words, change)
    else:
        show_value(words["key"], value or "")
        st.text_input(**words, **give())


def label_of(field: RecipeField) -> str:
    """The label, as markdown; tokens are named, other units are in the label's own words."""
    about = field.setting
    is_tokens = about.unit is not None and about.unit.template == "tokens"
    return t("recipe.in_tokens", label=say_plainly(about.label)) if is_tokens else say(about.label)


def help_of(field: RecipeField) -> str:
    """What it does, and its limits with their unit."""
    about = field.setting
    if about.choices or about.range is None:
        return say(about.help)
    return f"{say(about.help)}\n\n{t('recipe.range', range=say_plainly(about.range))}"


def show_value(key: str, value: Any) -> None:
    """Let a widget show the recipe's value, whatever it showed before.

    Set only when it differs: a value that is set anew would undo what the reader is typing into the field at that moment.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def _draw_number(path: str, least: Any, most: Any, value: Any, is_float: bool, words: dict[str, str], give: Callable[..., Any]) -> None:
    kind = float if is_float else int
    show_value(words["key"], None if value is None else kind(value))
    may_be_left_out = {"value": None, "placeholder": t_plainly("recipe.automatic")} if path in _MAY_BE_LEFT_OUT else {}
    st.number_input(min_value=kind(least), max_value=kind(most), step=kind(_STEPS.get(path, 1)), **may_be_left_out, **words, **give(),
                    format="%.2e" if path == "schedule.learning_rate" else "%g" if is_float else "%d")


def _in_one_line(value: str | int | list[Any]) -> str:
    """A word, a count, or a list with commas; the brackets tell a list of one number from a count."""
    if not isinstance(value, list):
        return str(value)
    return f"[{value[0]}]" if len(value) == 1 and isinstance(value[0], int) else ", ".join(map(str, value))


def _names_or_word(text: str) -> str | list[str]:
    """`all-linear` stays a word; `q_proj, v_proj` becomes a list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return names if len(names) > 1 or text.strip() != "all-linear" else "all-linear"


def _numbers_or_word(text: str) -> str | int | list[int | str]:
    """`auto` stays a word, `2` is a count; `0, 2` and `[0]` become lists."""
    parts = [int(part) if part.isdecimal() else part for part in re.findall(r"[^\s,\[\]]+", text)]
    return parts[0] if len(parts) == 1 and "[" not in text and "," not in text else parts


def _draw_system(value: str | None, words: dict[str, str], change: Change) -> None:
    """No system text, or one that may be empty: two different things."""
    own, key = f"{words['key']}_own", words["key"]
    show_value(own, value is not None)
    st.toggle(words["label"], help=words["help"], key=own,
              on_change=lambda: change(lambda _: {"data.system": "" if st.session_state[own] else None}))
    if value is not None:
        show_value(key, value)
        st.text_area(words["label"], key=key, label_visibility="collapsed",
                     on_change=lambda: change(lambda _: {"data.system": st.session_state[key]}))


def _draw_length(recipe: Recipe, change: Change) -> None:
    """Updates or epochs, never both."""
    by_path = {field.path: field for field in fields(recipe)}
    path = _LENGTHS[0] if recipe.schedule.updates is not None else _LENGTHS[1]
    first, second = st.columns(2)
    show_value("recipe_length_in", path)
    defaults = {_LENGTHS[0]: 36, _LENGTHS[1]: 1.0}

    def other_length() -> None:
        chosen = st.session_state["recipe_length_in"]
        change(lambda _: {chosen: defaults[chosen]})

    first.segmented_control(t("recipe.length_in"), _LENGTHS, key="recipe_length_in", required=True, help=t("recipe.length_help"),
                            format_func=lambda name: say_plainly(by_path[name].setting.label), on_change=other_length)
    about = by_path[path].setting
    words = {"label": label_of(by_path[path]), "help": help_of(by_path[path]), "key": f"recipe_{path}"}
    with second:
        _draw_number(path, about.minimum, about.maximum, by_path[path].default, path == _LENGTHS[1], words,
                     lambda: {"on_change": lambda: change(lambda _: {path: st.session_state[words["key"]]})})


def _draw_sources(workspace: Workspace, recipe: Recipe, change: Change) -> None:
    """One line per source: dataset, groups, weight; and the way to one more."""
    cards = {dataset.card.name: dataset.card for dataset in list_datasets(workspace)}
    sources = [source.model_dump() for source in recipe.data.sources]
    labels = {field.path.rsplit(".", 1)[-1]: field.setting for field in fields(Recipe) if field.path.startswith("data.sources[]")}

    def put(index: int, name: str) -> Callable[[], None]:
        def with_value(now: Recipe) -> dict[str, Any]:
            value, entries = st.session_state[f"recipe_source_{index}_{name}"], now.model_dump()["data"]["sources"]
            entries[index][name] = (value or None) if name == "groups" else value
            if name == "dataset":
                entries[index]["groups"] = [group for group in entries[index]["groups"] or [] if group in cards[value].groups] or None
            return {"data.sources": entries}
        return lambda: change(with_value)

    def without(index: int) -> Callable[[Recipe], dict[str, Any]]:
        return lambda now: {"data.sources": [entry for place, entry in enumerate(now.model_dump()["data"]["sources"]) if place != index]}

    def with_one_more(now: Recipe) -> dict[str, Any]:
        return {"data.sources": [*now.model_dump()["data"]["sources"], {"dataset": next(iter(cards)), "groups": None, "weight": 1.0}]}

    for index, source in enumerate(sources):
        with st.container(border=True, key=f"recipe_source_{index}"):
            first, second = st.columns([3, 2], vertical_alignment="bottom")
            for name, value in source.items():
                show_value(f"recipe_source_{index}_{name}", value if name != "groups" else value or [])
            first.selectbox(say(labels["dataset"].label), list(dict.fromkeys([*cards, source["dataset"]])),
                            help=say(labels["dataset"].help), key=f"recipe_source_{index}_dataset", on_change=put(index, "dataset"))
            second.number_input(say(labels["weight"].label), 0.001, 1000.0, step=0.5, format="%g", help=say(labels["weight"].help),
                                key=f"recipe_source_{index}_weight", on_change=put(index, "weight"))
            known = cards[source["dataset"]].groups if source["dataset"] in cards else {}
            st.multiselect(say(labels["groups"].label), list(dict.fromkeys([*known, *(source["groups"] or [])])),
                           key=f"recipe_source_{index}_groups", on_change=put(index, "groups"), help=say(labels["groups"].help),
                           placeholder=t_plainly("recipe.all_rows"),
                           format_func=lambda group, known=known: f"{group} {known.get(group, 0)}")
            if len(sources) > 1:
                st.button(t("recipe.drop_source"), key=f"{_DROP}_{index}", type="tertiary", icon=":material/remove:",
                          on_click=change, args=(without(index),))
    st.button(t("recipe.add_source"), key="recipe_add_source", icon=":material/add:", type="tertiary", disabled=not cards,
              help=t("recipe.add_source_help"), on_click=change, args=(with_one_more,))
