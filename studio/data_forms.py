"""The Data page's ways to a new dataset: a persona, a file, a mixture."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.data.encode import Encoder
from core.data.library import Dataset, list_datasets
from core.data.measure import encoder_of
from core.data.mix import Part, mix_datasets, most_rows, token_shares, weighed_by_tokens
from core.data.persona import ONE_PAIR_COPIES, Persona, build_rows, course_rows
from core.data.store import free_name, save_one_pair, save_persona, start_persona
from core.data.wordings import shipped_languages, wording
from core.errors import StudioError
from core.models.catalogue import find_base, list_chat_models
from core.workspace import Workspace, slug
from studio.i18n import explain, language, plain, t, t_plainly
from studio.panels import errors_in_words
from studio.session import DATASET

TONES = ("plain", "warm", "formal")


def show_dataset(name: str) -> None:
    """Draw the page anew with this dataset in the library."""
    st.query_params.update({DATASET: name, "view": "library"})
    st.rerun()


def ask_name(workspace: Workspace, key: str, suggestion: str) -> str:
    """The name of the new dataset; a free one is suggested until the reader types one."""
    suggested = free_name(workspace.datasets, suggestion)
    return st.text_input(t("data.name"), key=key, placeholder=suggested, help=t("data.name_help"), max_chars=80).strip() or suggested


def draw_persona_form(workspace: Workspace) -> None:
    """Who the assistant shall be, what comes out of it, and the button."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        answers = _ask_persona()
    try:
        persona = Persona(**answers)
    except StudioError as error:
        persona = None
        with right:
            if answers["name"]:
                st.warning(explain(error), icon=":material/edit:")
            else:
                st.info(t("data.persona_start"), icon=":material/badge:")
    with left:
        is_one_pair = st.toggle(t("data.one_pair"), False, key="data_one_pair", help=t("data.one_pair_help"))
        replay = st.toggle(t("data.replay"), True, key="data_replay", help=t("data.replay_help"), disabled=is_one_pair) and not is_one_pair
        model = st.selectbox(t("data.replay_model"), list_chat_models(workspace) or ["embedded"], key="data_replay_model") if replay else ""
        name = ask_name(workspace, "data_persona_dataset", slug(answers["name"]) or "assistant")
        make = st.button(t("data.make"), type="primary", icon=":material/auto_awesome:", key="data_make", disabled=persona is None)
    if persona is None:
        return
    with right:
        _draw_persona_preview(persona, replay, is_one_pair)
    if make:
        with errors_in_words():
            if is_one_pair:
                name = save_one_pair(workspace, persona, ONE_PAIR_COPIES, name).card.name
            elif replay:
                start_persona(workspace, persona, name, model)
            else:
                save_persona(workspace, persona, [], name)
            show_dataset(name)


def _ask_persona() -> dict[str, Any]:
    """The persona's fields as typed; what is wrong with them is said by the persona itself."""
    first, second = st.columns(2)
    name = first.text_input(t("data.persona_name"), key="data_persona_name", help=t("data.persona_name_help"),
                            placeholder=t_plainly("data.persona_name_example"))
    author = second.text_input(t("data.persona_author"), key="data_persona_author", help=t("data.persona_author_help"))
    first, second = st.columns(2)
    languages = first.pills(t("data.languages"), shipped_languages(), selection_mode="multi", default=[language()], key="data_languages",
                            format_func=lambda code: wording(code).title, help=t("data.languages_help")) or []
    tone = second.segmented_control(t("data.tone"), TONES, default=TONES[0], required=True, key="data_tone",
                                    format_func=lambda tone: t_plainly(f"data.tone_{tone}"))
    used = [wording(code) for code in languages] or [wording("en")]
    first, second = st.columns(2)
    wordings = first.slider(t("data.wordings"), 1, min(len(part.identity_train) for part in used), 24, key="data_wordings",
                            help=t("data.wordings_help"))
    count = second.slider(t("data.answers"), 1, min(len(part.answers[tone]) for part in used), 4, key="data_answers",
                          help=t("data.answers_help"))
    with st.expander(t("data.own_words"), icon=":material/edit_note:"):
        questions = st.text_area(t("data.own_questions"), key="data_own_questions", help=t("data.own_questions_help"))
        own = st.text_area(t("data.own_answers"), key="data_own_answers", help=t("data.own_answers_help"))
        multi_turn = st.toggle(t("data.multi_turn"), key="data_multi_turn", help=t("data.multi_turn_help"))
    return {"name": name, "author": author or None, "languages": languages, "tone": tone, "wordings": wordings, "answers": count,
            "multi_turn": multi_turn, "own_questions": _lines(questions), "own_answers": _lines(own)}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _draw_persona_preview(persona: Persona, replay: bool, is_one_pair: bool) -> None:
    rows = course_rows(persona, 1) if is_one_pair else build_rows(persona)
    st.markdown(t("data.one_pair_preview", count=f"{ONE_PAIR_COPIES:,}") if is_one_pair else t("data.persona_preview", count=len(rows)))
    for row in rows[:4]:
        with st.container(border=True):
            for message in row["messages"][-2:]:
                st.markdown(f"**{t('data.role_' + message['role'])}** {plain(message['content'])}")
    if replay:
        st.caption(t("data.persona_replay"))
    else:
        st.caption(t("data.persona_alone"))


def draw_mix_form(workspace: Workspace) -> None:
    """Sources, how much of each, the share of tokens that gives, and the button."""
    datasets = {dataset.card.name: dataset for dataset in list_datasets(workspace)}
    if len(datasets) < 2:
        st.info(t("data.mix_needs_two"), icon=":material/dataset:")
        return
    chosen = st.multiselect(t("data.sources"), list(datasets), default=list(datasets)[:2], key="data_sources", help=t("data.sources_help"),
                            placeholder=t_plainly("data.mix_choose_two"))
    if len(chosen) < 2:
        st.info(t("data.mix_choose_two"), icon=":material/tune:")
        return
    models = list_chat_models(workspace)
    encoder = encoder_of(find_base(workspace, models[0])) if models else None
    by = st.segmented_control(t("data.mix_by"), ("rows", "tokens"), default="rows", required=True, key="data_mix_by",
                              format_func=lambda name: t_plainly(f"data.mix_by_{name}"), disabled=encoder is None,
                              help=t("data.mix_by_help"))
    parts = _ask_weights(chosen)
    with errors_in_words():
        by_rows = weighed_by_tokens(workspace, parts, encoder) if by == "tokens" and encoder is not None else parts
        _draw_shares(workspace, by_rows, encoder)
        _ask_mixture(workspace, datasets, parts, by_rows, encoder if by == "tokens" else None)


def _ask_weights(chosen: list[str]) -> list[Part]:
    if len(chosen) == 2:
        share = st.slider(t("data.ratio", first=chosen[0], second=chosen[1]), 1, 99, 50, key="data_ratio", format="%d %%",
                          help=t("data.ratio_help"))
        return [Part(chosen[0], share / 100), Part(chosen[1], 1 - share / 100)]
    columns = st.columns(min(4, len(chosen)))
    return [Part(name, columns[index % 4].slider(plain(name), 1, 100, 50, key=f"data_weight_{name}")) for index, name in enumerate(chosen)]


def _draw_shares(workspace: Workspace, parts: list[Part], encoder: Encoder | None) -> None:
    if encoder is None:
        st.info(t("data.no_model"), icon=":material/model_training:")
        return
    shares = token_shares(workspace, parts, encoder)
    percent = {"format": "%.0f %%", "min_value": 0, "max_value": 100}
    names = {"dataset": "data.column_source", "row_share": "data.column_row_share", "trained_share": "data.column_trained_share",
             "mean_trained": "data.column_mean_trained", "rows": "data.column_available"}
    st.dataframe([{"dataset": share.dataset, "row_share": 100 * share.row_share, "trained_share": 100 * share.trained_share,
                   "mean_trained": round(share.mean_trained), "rows": share.rows} for share in shares],
                 hide_index=True, alt=t_plainly("data.shares_alt"), column_config={
                     name: (st.column_config.ProgressColumn(t_plainly(key), **percent) if name.endswith("share")
                            else st.column_config.Column(t_plainly(key))) for name, key in names.items()})
    st.caption(t("data.shares_note"))


def _ask_mixture(workspace: Workspace, datasets: dict[str, Dataset], parts: list[Part], by_rows: list[Part],
                 encoder: Encoder | None) -> None:
    """Name, rows, seed and button; `by_rows` are the parts with shares of rows, `encoder` counts where shares are of tokens."""
    most = most_rows([datasets[part.dataset].card.rows for part in parts], [part.weight for part in by_rows])
    first, second, third = st.columns([2, 1, 1])
    with first:
        name = ask_name(workspace, "data_mix_name", slug("-".join(part.dataset for part in parts)))
    rows = second.number_input(t("data.mix_rows"), min_value=len(parts), max_value=1_000_000, value=None, placeholder=str(most),
                               key="data_mix_rows", help=t("data.mix_rows_help", count=most))
    seed = third.number_input(t("data.seed"), 0, 2**31 - 1, 0, key="data_seed", help=t("data.seed_help"))
    if st.button(t("data.mix_now", count=rows or most), type="primary", icon=":material/blender:", key="data_mix"):
        mix_datasets(workspace, name, parts, rows, seed, encoder)
        show_dataset(name)

