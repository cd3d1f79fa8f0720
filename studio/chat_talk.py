"""The conversation on the Chat page: what was said, the answers as they come, keeping and exporting them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from core.chat import client
from core.chat.choices import Choice
from core.chat.proof import SHORT, twins
from core.chat.talk import (
    Exchange,
    Said,
    history_of,
    load_talk,
    new_talk_id,
    save_exchange,
    to_jsonl,
    to_markdown,
    training_row,
)
from core.data.library import IDENTITY, NEAR, append_rows, list_datasets
from core.errors import StudioError
from core.lesson import QUESTIONS
from core.workspace import Workspace
from studio.chat_panels import Settings, label_of, name_and_kind
from studio.i18n import explain, language, plain, say, t, t_plainly
from studio.session import CHAT_EXCHANGES, CHAT_LIVE, CHAT_NOTICE, CHAT_TALK, CHAT_UNSAVED

_SHOWN = 12
_TICK_SECONDS = 0.1
_GROUPS = (IDENTITY, NEAR, "general")


def _exchanges() -> list[Exchange]:
    return st.session_state.setdefault(CHAT_EXCHANGES, [])


def draw_talk_actions(workspace: Workspace) -> None:
    """New conversation and export; also where a reloaded page gets its conversation back."""
    asked = st.query_params.get("talk")
    if asked and asked != st.session_state.get(CHAT_TALK):
        st.session_state[CHAT_TALK], st.session_state[CHAT_EXCHANGES] = asked, load_talk(workspace, asked)
    elif st.session_state.get(CHAT_TALK):
        st.query_params["talk"] = st.session_state[CHAT_TALK]
    if notice := st.session_state.pop(CHAT_NOTICE, None):
        st.toast(notice, icon=":material/bookmark_added:")
    if unsaved := st.session_state.get(CHAT_UNSAVED):
        st.error(unsaved, icon=":material/error:")
    exchanges = _exchanges()
    if not exchanges:
        return
    with st.container(horizontal=True):
        st.button(t("chat.clear"), key="chat_clear", icon=":material/add_comment:", on_click=_clear)
        with st.popover(t("chat.export"), icon=":material/download:", key="chat_export"):
            stamp = time.strftime("%Y%m%d-%H%M")
            st.download_button(t("chat.export_markdown"), to_markdown(exchanges), f"chat-{stamp}.md", "text/markdown",
                               key="chat_export_markdown", on_click="ignore", icon=":material/description:")
            st.download_button(t("chat.export_jsonl"), to_jsonl(exchanges), f"chat-{stamp}.jsonl", "application/jsonl",
                               key="chat_export_jsonl", on_click="ignore", icon=":material/data_object:")


def _clear() -> None:
    live = st.session_state.pop(CHAT_LIVE, None)
    if live is not None:
        live[1].close()
    st.session_state[CHAT_EXCHANGES] = []
    st.session_state.pop(CHAT_TALK, None)
    st.query_params.pop("talk", None)


def take_question(workspace: Workspace, models: Sequence[str], settings: Settings) -> None:
    """The one input for all panes."""
    question = st.chat_input(t_plainly("chat.input"), key="chat_question", disabled=not models, submit_mode="disable")
    question = question or st.session_state.pop("chat_suggested", None)
    if not question or not question.strip() or not models:
        return
    _file_live(workspace, is_superseded=True)
    exchange = Exchange(question=question.strip(), asked=time.time(), system=settings.system, sampled=settings.sampled, answers=[])
    histories = [history_of(_exchanges(), model, settings.system, exchange.question) for model in models]
    st.session_state[CHAT_LIVE] = (exchange, client.ask(workspace, models, histories, settings.sampled))


def _file_live(workspace: Workspace, is_superseded: bool = False) -> None:
    """Put the answers that were arriving into the conversation, on disk too."""
    live = st.session_state.get(CHAT_LIVE)
    if live is None:
        return
    exchange, answers = live
    if answers.is_active and is_superseded:
        answers.close()
        answers.wait(1.0)
    said = [one.model_copy(update={"reason": one.reason or "stopped"}) for one in answers.panes]
    done = exchange.model_copy(update={"answers": said, "notes": list(answers.notes)})
    talk = st.session_state.get(CHAT_TALK) or new_talk_id()
    st.session_state[CHAT_TALK] = talk
    _exchanges().append(done)  # first: what was answered stays on the page even where it cannot be kept
    del st.session_state[CHAT_LIVE]
    st.query_params["talk"] = talk
    try:
        save_exchange(workspace, talk, done)
        st.session_state.pop(CHAT_UNSAVED, None)
    except StudioError as error:
        st.session_state[CHAT_UNSAVED] = explain(error)


def draw_talk(workspace: Workspace, models: Sequence[str], choices: Sequence[Choice]) -> None:
    """What was said so far; questions to begin with when nothing was."""
    exchanges = _exchanges()
    if not models:
        st.info(t("chat.no_models"), icon=":material/info:")
    if models and not exchanges and CHAT_LIVE not in st.session_state:
        _suggest()
    hidden = max(0, len(exchanges) - _SHOWN)
    if hidden and st.checkbox(t("chat.earlier", count=hidden), key="chat_earlier"):
        hidden = 0
    kept = None
    for number, exchange in enumerate(exchanges[hidden:], hidden):
        kept = _draw_exchange(number, exchange, choices) or kept
    if kept is not None:
        st.dialog(t_plainly("chat.keep_title"), width="medium", icon=":material/bookmark_add:")(_draw_keep)(workspace, *kept)


def _suggest() -> None:
    st.caption(t("chat.try_one"))
    with st.container(horizontal=True, key="chat_suggestions"):
        for number, question in enumerate(QUESTIONS[language()]):
            st.button(plain(question), key=f"chat_suggestion_{number}", on_click=_ask_suggested, args=(question,))


def _ask_suggested(question: str) -> None:
    st.session_state["chat_suggested"] = question


def _draw_question(exchange: Exchange) -> None:
    with st.chat_message("user", avatar=":material/person:"):
        st.text(exchange.question)


def _draw_exchange(number: int, exchange: Exchange, choices: Sequence[Choice]) -> tuple[Exchange, Said] | None:
    """One question and its answers; returns the answer whose `keep` button was pressed."""
    _draw_question(exchange)
    for note in exchange.notes:
        st.caption(say(note))
    kept = None
    for place, (column, said) in enumerate(zip(st.columns(len(exchange.answers)), exchange.answers, strict=True)):
        with column, st.container(border=True, height="stretch"):
            _draw_name(said.model, choices)
            _draw_said(said)
            if said.text.strip() and st.button(t("chat.keep"), key=f"chat_keep_{number}_{place}", type="tertiary",
                                               icon=":material/bookmark_add:"):
                kept = (exchange, said)
    for first, second in twins([said.proof for said in exchange.answers]):
        names = [label_of(exchange.answers[place].model, choices) for place in (first, second)]
        st.error(t("chat.twins", first=names[0], second=names[1]), icon=":material/warning:")
    return kept


def _draw_name(model: str, choices: Sequence[Choice]) -> None:
    name, kind = name_and_kind(model, choices)
    st.markdown(f"**{plain(name)}**" + (f"  \n:small[:gray[{plain(kind)}]]" if kind else ""))


def _draw_said(said: Said) -> None:
    """One answer, as text and nothing else, with who gave it."""
    if said.problem and said.hint:
        st.error(f"{say(said.problem)}\n\n{say(said.hint)}", icon=":material/error:")
    if said.text.strip():
        st.text(said.text.strip())
    elif said.problem is None:
        st.caption(t("chat.empty_answer"))
    for note in said.notes:
        st.caption(f":material/content_cut: {say(note)}")
    if said.proof is not None:
        proof = said.proof
        weights = t("chat.proof", weights=proof.weights[:SHORT], prompt=proof.prompt[:SHORT], prompt_tokens=proof.prompt_tokens)
        st.caption(f"{_speed(said)}  \n{weights}", help=t("chat.proof_help", resolved=proof.resolved, base=proof.base,
                                                   base_weights=proof.base_weights[:SHORT]))
    elif said.reason not in (None, "error"):
        st.caption(_speed(said))


def _speed(said: Said) -> str:
    return t("chat.speed", tokens=said.tokens, rate=f"{said.tokens_per_second:.1f}", reason=t_plainly(f"chat.reason_{said.reason}"))


def answer_live(workspace: Workspace, choices: Sequence[Choice]) -> None:
    """Draw the answers as they come, in all panes at once. A click elsewhere redraws the page and goes on here."""
    live = st.session_state.get(CHAT_LIVE)
    if live is None:
        return
    exchange, answers = live
    _draw_question(exchange)
    status = st.empty()
    bodies, feet = [], []
    for place, (column, said) in enumerate(zip(st.columns(len(answers.panes)), answers.panes, strict=True)):
        with column, st.container(border=True, height="stretch"):
            _draw_name(said.model, choices)
            bodies.append(st.empty())
            feet.append(st.empty())
            feet[-1].button(t("chat.stop_one"), key=f"chat_stop_{place}", type="tertiary", icon=":material/stop:",
                            on_click=answers.cancel, args=(place,))
    st.button(t("chat.stop"), key="chat_stop", icon=":material/stop_circle:", on_click=answers.cancel)
    shown = [("", False)] * len(bodies)
    second = -1
    is_active = True
    while is_active:
        is_active = answers.wait(_TICK_SECONDS)
        if second != (second := int(time.time() - exchange.asked)):
            status.caption(t("chat.stage_line", stage=t_plainly(f"chat.stage_{answers.stage}"), seconds=second))
        for place, said in enumerate(answers.panes):
            text, is_done = said.text.strip(), said.reason is not None
            if shown[place][0] != text:
                bodies[place].text(text)
            if is_done and not shown[place][1]:
                feet[place].caption(_speed(said))
            shown[place] = (text, is_done)
    _file_live(workspace)
    st.rerun()


def _draw_keep(workspace: Workspace, exchange: Exchange, said: Said) -> None:
    """Where an exchange shall go, with the answer as it should have been."""
    st.caption(t("chat.keep_question"))
    st.text(exchange.question)
    st.text_area(t("chat.keep_answer"), said.text.strip(), key="chat_keep_answer", height=140)
    names = [dataset.card.name for dataset in list_datasets(workspace)]
    st.selectbox(t("chat.keep_dataset"), names, index=0 if names else None, key="chat_keep_dataset", accept_new_options=True,
                 help=t("chat.keep_dataset_help"), placeholder=t_plainly("chat.keep_dataset_empty"))
    st.segmented_control(t("chat.keep_group"), _GROUPS, default=IDENTITY, required=True, key="chat_keep_group",
                         format_func=lambda group: t_plainly(f"chat.group_{group}"))
    if st.button(t("chat.keep_add"), type="primary", key="chat_keep_add", on_click=_keep, args=(workspace, exchange.question)):
        failure = st.session_state.pop("chat_keep_failure", None)
        if failure is None:
            st.rerun()
        st.error(failure, icon=":material/error:")


def _keep(workspace: Workspace, question: str) -> None:
    try:
        row = training_row(question, st.session_state["chat_keep_answer"], st.session_state["chat_keep_group"])
        dataset = append_rows(workspace, st.session_state["chat_keep_dataset"] or "", [row], "chat")
        st.session_state[CHAT_NOTICE] = t("chat.kept", dataset=dataset.card.name, rows=dataset.card.rows)
    except StudioError as error:
        st.session_state["chat_keep_failure"] = explain(error)
