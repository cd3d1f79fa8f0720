"""The parts of the Chat page above the conversation: which models, how they answer, what to do when there is none yet."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from core.chat import client
from core.chat.choices import MOST_PANES, Choice, default_choices, resolve_choice
from core.chat.device import jobs_at_device
from core.chat.endpoint import is_endpoint, read_endpoint
from core.chat.request import Sampled
from core.jobs.active import active_jobs
from core.jobs.folder import create_job, new_job_id
from core.jobs.launch import start_job
from core.jobs.once import one_at_a_time
from core.models.embedded import EMBEDDED_NAME
from core.workspace import Workspace
from studio.i18n import language, t, t_plainly, words
from studio.panels import draw_failure, errors_in_words, same_command, watch_job
from studio.session import CHAT_ADDRESS

_RUN_STAMP = re.compile(r"\d{8}-\d{6}-(.+)")
_READING_WIDTH = 760
_DEFAULTS = Sampled()


@dataclass(frozen=True)
class Settings:
    """How to answer; `system` None leaves it to each model."""

    sampled: Sampled
    system: str | None


def label_of(reference: str, choices: Sequence[Choice] = ()) -> str:
    """A model as people call it: `alex-527b (step 16, recommended)`."""
    name, kind = name_and_kind(reference, choices)
    return t_plainly("chat.label", name=name, kind=kind) if kind else name


def name_and_kind(reference: str, choices: Sequence[Choice] = ()) -> tuple[str, str]:
    """What a model is called and what it is, from its reference alone when it is not among the choices."""
    if is_endpoint(reference):
        endpoint = read_endpoint(reference)
        return endpoint.model, t_plainly("chat.kind_endpoint", url=endpoint.url)
    choice = next((choice for choice in choices if choice.reference == reference), None)
    if choice is None:
        run, _, step = reference.partition("@")
        number, _, strength = step.partition("*")
        if not number.isdigit():
            return reference, ""
        choice = Choice(reference, "checkpoint", run, int(number), float(strength or 1.0))
    if choice.kind != "checkpoint":
        return EMBEDDED_NAME if choice.reference == "embedded" else choice.reference, t_plainly(f"chat.kind_{choice.kind}")
    stamped = _RUN_STAMP.fullmatch(choice.run)
    kind = "strength" if choice.strength != 1.0 else choice.mark or "checkpoint"
    return stamped[1] if stamped else choice.run, t_plainly(f"chat.kind_{kind}", step=choice.step, strength=choice.strength)


def choose_models(workspace: Workspace, choices: Sequence[Choice]) -> list[str]:
    """The models side by side; the address and this choice follow each other."""
    known = list(choices)
    asked = ",".join(st.query_params.get_all("models"))
    is_typed = True
    if asked and asked != st.session_state.get(CHAT_ADDRESS):
        wanted, is_typed = _split(asked), False
    elif "chat_models" in st.session_state:
        wanted = st.session_state["chat_models"]
    else:  # back from another page, or here for the first time
        wanted = _split(st.session_state.get(CHAT_ADDRESS, "")) or default_choices(known)
    chosen: list[str] = []
    for reference in wanted:
        with errors_in_words():
            choice = resolve_choice(workspace, known, reference, is_typed)
            if choice not in known:
                known.append(choice)
            chosen.append(choice.reference)
    st.session_state["chat_models"] = list(dict.fromkeys(chosen))[:MOST_PANES]
    labels = {choice.reference: label_of(choice.reference, known) for choice in known}
    models = st.multiselect(t("chat.models"), list(labels), key="chat_models", format_func=lambda name: labels.get(name, name),
                            max_selections=MOST_PANES, help=t("chat.models_help"), placeholder=t_plainly("chat.models_empty"),
                            accept_new_options=True)
    st.session_state[CHAT_ADDRESS] = ",".join(models)
    if models:
        st.query_params["models"] = st.session_state[CHAT_ADDRESS]
    else:
        st.query_params.pop("models", None)
    return models


def _split(address: str) -> list[str]:
    return [name.strip() for name in address.split(",") if name.strip()]


def draw_busy(workspace: Workspace) -> None:
    """Say when a training or another job has the machine."""
    own = [(job, state) for job, state in jobs_at_device(workspace) if job.folder.parent.parent == workspace.root]  # no other student's
    for job, state in own[:1]:
        kind = f"shell.kind_{state.kind}"
        word = t_plainly(kind if kind in words(language()) else "shell.kind_other")
        st.info(t("chat.busy", kind=word.capitalize(), job=job.id), icon=":material/hourglass_bottom:")


def draw_settings(workspace: Workspace) -> Settings:
    """How to answer, folded: the defaults are good."""
    with st.expander(t("chat.settings"), icon=":material/tune:"):
        first, second, third = st.columns(3)
        temperature = first.slider(t("chat.temperature"), 0.0, 2.0, _DEFAULTS.temperature, 0.05, key="chat_temperature",
                                   help=t("chat.temperature_help"), persist_state="session")
        top_p = second.slider(t("chat.top_p"), 0.05, 1.0, _DEFAULTS.top_p, 0.05, key="chat_top_p", help=t("chat.top_p_help"),
                              persist_state="session")
        penalty = third.slider(t("chat.repetition_penalty"), 0.5, 2.0, _DEFAULTS.repetition_penalty, 0.05,
                               key="chat_repetition_penalty", help=t("chat.repetition_penalty_help"), persist_state="session")
        top_k = first.number_input(t("chat.top_k"), 0, 100_000, _DEFAULTS.top_k, key="chat_top_k", help=t("chat.top_k_help"),
                                   persist_state="session")
        longest = second.number_input(t("chat.max_new_tokens"), 1, 8192, _DEFAULTS.max_new_tokens, key="chat_max_new_tokens",
                                      help=t("chat.max_new_tokens_help"), persist_state="session")
        seed = third.number_input(t("chat.seed"), 0, 2**31 - 1, _DEFAULTS.seed, key="chat_seed", help=t("chat.seed_help"),
                                  persist_state="session")
        system = st.text_area(t("chat.system"), key="chat_system", help=t("chat.system_help"), height=68,
                              placeholder=t_plainly("chat.system_placeholder"), persist_state="session")
        if client.find_worker(workspace) is not None:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.caption(t("chat.memory"), width="content")
                st.button(t("chat.unload"), key="chat_unload", type="tertiary", icon=":material/eject:",
                          on_click=client.end_worker, args=(workspace,))
    sampled = Sampled(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=penalty, seed=seed, max_new_tokens=longest)
    return Settings(sampled, system.strip() or None)


def prepare_first(workspace: Workspace) -> None:
    """Nothing to chat with yet: one button, or what is on its way."""
    active = {state.kind: job for job, state in active_jobs(workspace)}
    if "prepare" in active:
        watch_job(str(active["prepare"].folder))
        return
    if "lesson" in active:
        st.info(t("chat.first_lesson"), icon=":material/school:")
        watch_job(str(active["lesson"].folder))
        return
    with st.container(border=True, width=_READING_WIDTH):
        st.subheader(t("chat.first_title"), anchor=False)
        st.markdown(t("chat.first_text"))
        failed = st.session_state.get("chat_prepare")
        if failed is not None:
            draw_failure(failed.state())
        if st.button(t("chat.first_button"), type="primary", icon=":material/download_done:", key="chat_prepare_start"):
            with errors_in_words():
                st.session_state["chat_prepare"] = _prepare_once(workspace)
                st.rerun()


def _prepare_once(workspace: Workspace):
    with one_at_a_time(workspace, "prepare"):
        known = [job for job, state in active_jobs(workspace) if state.kind == "prepare"]
        if known:
            return known[0]
        job = create_job(workspace.jobs / new_job_id("prepare", "embedded"), "prepare", {})
        start_job(job)
        return job


def same_chat_command(models: Sequence[str], settings: Settings) -> None:
    """The command that chats with the same models in the same way."""
    options = [f"--{name.replace('_', '-')} {value:g}" for name, value in settings.sampled.model_dump().items()
               if value != getattr(_DEFAULTS, name)]
    if settings.system:
        options.append(f"--system {shlex.quote(settings.system)}")
    if models:
        same_command(" ".join(["sweetspot chat", *map(shlex.quote, models), *options]))
