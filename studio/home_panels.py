"""The parts of the Home page: the one question, the lesson as it goes, recent runs, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from core.data.persona import NAME_LIMIT, Persona
from core.jobs.active import active_jobs
from core.jobs.folder import Job, JobState
from core.lesson import read_lesson, resume_lesson, start_lesson_once
from core.machine import Finding, diagnose
from core.runs import Run, list_runs
from core.workspace import Workspace
from studio.i18n import language, plain, say, t
from studio.moments import duration, when
from studio.panels import POLL_SECONDS, draw_failure, draw_progress, draw_state, draw_waiting, errors_in_words, link_to
from studio.visitors import open_workspace

# Wide enough for a sentence, narrow enough to be read in one glance.
_READING_WIDTH = 760
_RECENT_RUNS = 6
_PAGE_OF_PART = {"prepare": "chat", "data": "data", "train": "train", "judge": "compare", "train_remedy": "train",
                 "judge_remedy": "compare", "merge": "merge", "ask": "chat"}
_PART_MARKS = {"done": (":material/check_circle:", "green"), "running": (":material/progress_activity:", "blue"),
               "waiting": (":material/radio_button_unchecked:", "gray"), "stopped": (":material/stop_circle:", "gray"),
               "failed": (":material/error:", "red")}
VERDICT_MARKS = {"recommended": (":material/verified:", "green"), "compromise": (":material/balance:", "orange"),
                 "not_learned": (":material/hourglass_empty:", "gray")}


def ask_for_name(workspace: Workspace) -> None:
    """The one question, and the button that starts everything."""
    with st.container(width=_READING_WIDTH), st.form("home_lesson"):
        st.markdown(f"### {t('home.name')}")
        name = st.text_input(t("home.name"), key="home_name", placeholder=t("home.name_example"), max_chars=NAME_LIMIT,
                             label_visibility="collapsed")
        st.caption(t("home.name_note"))
        with st.expander(t("home.more")):
            # A key of its own for each language of the page, which is the default.
            taught = st.segmented_control(t("home.language"), ["en", "zh"], default=language(), required=True,
                                          key=f"home_language_{language()}", help=t("home.language_help"),
                                          format_func=lambda code: t(f"home.language_{code}"))
            author = st.text_input(t("home.author"), key="home_author", help=t("home.author_help"))
            remedy = st.checkbox(t("home.remedy"), key="home_remedy", help=t("home.remedy_help"))
        is_asked = st.form_submit_button(t("home.start"), type="primary", icon=":material/play_arrow:", key="home_start")
        st.caption(t("home.start_note"))
    if is_asked:
        with errors_in_words():
            start_lesson_once(workspace, Persona(name=name.strip(), author=author.strip() or None, languages=[taught]), remedy)
            st.rerun()


def draw_lesson(workspace: Workspace, lesson: Job) -> None:
    """The newest lesson: its parts with what came of them, live while it runs."""
    is_active = lesson.state().is_active
    with st.container(border=True):
        st.fragment(_draw_lesson_now, run_every=POLL_SECONDS if is_active else None)(str(lesson.folder), is_active)
        state = lesson.state()
        if state.state in ("running", "queued") and st.button(t("home.stop"), icon=":material/stop:", key="home_stop"):
            lesson.request_stop()
            st.rerun()
        if state.state in ("stopped", "failed"):
            draw_failure(state)
            if st.button(t("home.resume"), type="primary", icon=":material/play_arrow:", key="home_resume"):
                resume_lesson(workspace, lesson)
                st.rerun()


def _draw_lesson_now(folder: str, was_active: bool) -> None:
    lesson, workspace = Job(Path(folder)), open_workspace()
    state, parts = lesson.state(), read_lesson(lesson)["parts"]
    if was_active and not state.is_active:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(t("home.lesson_title", name=lesson.spec()["persona"]["name"]), anchor=False, width="content")
        draw_state(state)
        st.caption(when(state.created), width="content")
    if state.is_active:
        _draw_now(workspace, lesson, state, parts)
    elif state.state == "finished":
        st.markdown(t("home.lesson_done"))
    for part, entry in parts.items():
        _draw_part(workspace, part, _mark_of(entry["state"], state), entry)


def _draw_now(workspace: Workspace, lesson: Job, state: JobState, parts: dict[str, dict[str, Any]]) -> None:
    """What the lesson does this moment: the bar of its part, or for whom that part waits."""
    at_work = next((entry for entry in parts.values() if entry["state"] == "running" and "folder" in entry), None)
    child = Job(Path(at_work["folder"])) if at_work else lesson
    child_state = child.state()
    if child_state.state == "queued":
        draw_waiting(workspace, child, child_state)
    else:
        draw_progress(state)
    st.caption(t("shell.safe_to_close"))


def _mark_of(part_state: str, state: JobState) -> str:
    """A part left "running" by a lesson that has ended was stopped or failed with it."""
    return state.state if part_state == "running" and state.state in ("stopped", "failed") else part_state


def _draw_part(workspace: Workspace, part: str, mark: str, entry: dict[str, Any]) -> None:
    """One line: mark, what is done, what came of it, how long it took, and the page it fills."""
    icon, colour = _PART_MARKS[mark]
    what, outcome, page = st.columns([5, 6, 2], vertical_alignment="center")
    seconds = f" :small[:gray[{plain(duration(entry['seconds']))}]]" if mark == "done" and "seconds" in entry else ""
    what.markdown(f":{colour}[{icon}] {t(f'home.part_{part}')}{seconds}")
    if mark == "done":
        outcome.markdown(_outcome(workspace, part, entry))
    elif mark != "waiting":
        outcome.markdown(t(f"home.part_is_{mark}"))
    if mark in ("done", "running") and part != "prepare":
        with page:
            target = _PAGE_OF_PART[part]
            link_to(target, t(f"shell.{target}"), icon=":material/arrow_forward:", **_query_of(part, entry))


def _outcome(workspace: Workspace, part: str, entry: dict[str, Any]) -> str:
    """What came of a part, in one short sentence."""
    if part == "data":
        return t("home.outcome_data", dataset=entry["dataset"], rows=sum(entry["rows"].values()), probes=entry["probes"])
    if part in ("train", "train_remedy"):
        run = Run(workspace.runs / entry["run"])
        return t("home.outcome_train", snapshots=len(run.checkpoints())) if run.folder.exists() else t("home.outcome_gone")
    if part in ("judge", "judge_remedy"):
        return t(f"home.outcome_{entry['verdict']}", step=entry["step"])
    if part == "merge":
        return t("home.outcome_merge", model=entry["model"])
    if part == "ask":
        return t("home.outcome_ask", count=len((entry.get("answers") or {}).get("questions", [])))
    return t("home.outcome_prepare")


def _query_of(part: str, entry: dict[str, Any]) -> dict[str, str]:
    """What the page of a part shall show."""
    if part == "data" and "dataset" in entry:
        return {"dataset": entry["dataset"]}
    if part in ("train", "train_remedy") and "folder" in entry:
        return {"run": Path(entry["folder"]).name}
    return {}


def draw_recent_runs(workspace: Workspace) -> None:
    """The newest runs: state, verdict, pick, and the way to their pages; looked at anew while something runs."""
    st.subheader(t("home.recent_runs"), anchor=False)
    st.fragment(_draw_runs_now, run_every=2 * POLL_SECONDS if active_jobs(workspace) else None)()


def _draw_runs_now() -> None:
    runs = list_runs(open_workspace())
    if not runs:
        st.caption(t("home.no_runs"))
        return
    with st.container(border=True):
        for run in runs[:_RECENT_RUNS]:
            _draw_run(run)
        if len(runs) > _RECENT_RUNS:
            link_to("train", t("home.all_runs", count=len(runs)), icon=":material/list:")


def _draw_run(run: Run) -> None:
    state, verdict = run.state(), run.verdict()
    name, stand, judged, links = st.columns([5, 3, 4, 3], vertical_alignment="center")
    name.markdown(f"**{plain(run.id)}**  \n:small[:gray[{plain(when(state.created))}]]")
    with stand:
        draw_state(state)
    with judged:
        if verdict:
            icon, colour = VERDICT_MARKS[verdict["verdict"]]
            st.badge(t(f"home.verdict_{verdict['verdict']}", step=verdict["pick"]["step"]), icon=icon, color=colour)
        elif not state.is_active:
            st.caption(t("home.not_judged"))
    with links, st.container(horizontal=True):
        link_to("train", t("shell.train"), run=run.id)
        link_to("compare", t("shell.compare"), run=run.id)


@st.cache_data(ttl=20, show_spinner=False)
def _diagnose(root: str) -> list[dict[str, Any]]:
    return [finding.model_dump() for finding in diagnose(Workspace.open(root))]


def draw_machine(workspace: Workspace) -> None:
    """What this machine can do, worst last."""
    st.subheader(t("home.machine"), anchor=False)
    icons = {"ok": ":green[:material/check_circle:]", "warning": ":orange[:material/warning:]", "error": ":red[:material/error:]"}
    with st.container(width=_READING_WIDTH):
        for finding in (Finding.model_validate(found) for found in _diagnose(str(workspace.root))):
            fix = f"  \n:gray[{say(finding.fix)}]" if finding.fix else ""
            st.markdown(f"{icons[finding.level]} {say(finding.text)}{fix}")
