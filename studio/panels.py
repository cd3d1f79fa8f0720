"""What several pages draw alike: the frame, the path of a first visit, errors, jobs that run, the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from core.classroom.queue import place_in_queue
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.jobs.folder import Job, JobState
from core.jobs.queue import holder, waiting_before
from core.jobs.studio import hold_workspace
from core.journey import STAGES, read_journey
from core.workspace import Workspace
from studio.i18n import explain, language, plain, say, t, words
from studio.moments import duration
from studio.session import LANGUAGE, RUN
from studio.visitors import door, open_workspace, visitor

_PAGES = Path(__file__).resolve().parent.parent / "pages"
PATH = STAGES
# Live panels look at the files this often; charts and logs are read from where the last look ended.
POLL_SECONDS = 2.0

# A start that is no further away is called now: workers look whether it is their turn every few seconds.
_AT_ONCE_SECONDS = 3.0

_STAGE_ICONS = {"done": ":material/check_circle:", "running": ":material/progress_activity:", "next": ":material/radio_button_checked:",
                "open": ":material/radio_button_unchecked:"}
STATE_MARKS = {"queued": ("hourglass_empty", "gray"), "running": ("progress_activity", "blue"), "stopping": ("hourglass_bottom", "orange"),
               "finished": ("check_circle", "green"), "stopped": ("stop_circle", "gray"), "failed": ("error", "red")}


def draw_sidebar() -> None:
    """What runs now, and the language switch."""
    with st.sidebar:
        is_active = bool(active_jobs(open_workspace()))
        st.fragment(_draw_running, run_every=POLL_SECONDS if is_active else None)(is_active)
        st.space("small")
        st.segmented_control(t("shell.language"), ["en", "zh"], format_func=lambda code: {"en": "English", "zh": "中文"}[code],
                             key=LANGUAGE, label_visibility="collapsed", required=True, on_change=_keep_language)
        if (who := visitor()) is not None:
            st.space("small")
            name = door().room.student(who.student).name if who.role == "student" and door().room else t(f"shell.role_{who.role}")
            st.caption(plain(name))
            st.link_button(t("shell.sign_out"), "/sign-out", icon=":material/logout:", type="tertiary")


def _draw_running(was_active: bool) -> None:
    """The jobs at work, each with a thin bar; when the last one ends the page draws itself anew, once."""
    active = active_jobs(open_workspace())
    if was_active and not active:
        st.rerun()
    if not active:
        st.caption(t("shell.nothing_runs"))
        return
    st.caption(t("shell.running_now"))
    for job, state in active:
        if state.kind == "lesson" and len(active) > 1:
            continue  # it shows as the job it started
        progress = state.progress
        kind = f"shell.kind_{state.kind}"
        word = t(kind if kind in words(language()) else "shell.kind_other")
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        st.progress(share, text=f"**{word}** · {state_word(state)}  \n:small[{plain(job.id)}]")


def _keep_language() -> None:
    st.query_params["lang"] = st.session_state[LANGUAGE]


def open_page(name: str) -> Workspace:
    """Draw the path, a page's title and the question it answers; returns the workspace it works in."""
    workspace = open_workspace()
    draw_reader(workspace)
    is_active = bool(active_jobs(workspace))
    st.fragment(_draw_path, run_every=2 * POLL_SECONDS if is_active else None)(st.query_params.get(RUN))
    st.title(t(f"{name}.title"), anchor=False)
    st.caption(t(f"{name}.question"))
    return workspace


def draw_reader(workspace: Workspace) -> None:
    """Say so where this studio may only read."""
    who = hold_workspace(workspace)
    if who is not None:
        st.warning(t("shell.only_reads", who=plain(who.to(language()))), icon=":material/lock:")


def _draw_path(run: str | None) -> None:
    """One thin line of links: what is done, what runs, what comes next."""
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key="shell_path"):
        for stage in read_journey(open_workspace(), run):
            query = {RUN: run} if run and stage.name in ("train", "compare") else {}
            link_to(stage.name, t(f"shell.{stage.name}"), icon=_STAGE_ICONS[stage.state], hint=t(f"shell.stage_{stage.state}"), **query)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Show what a user can mend as a sentence with its way out; the rest of the page still draws."""
    try:
        yield
    except StudioError as error:
        st.error(explain(error), icon=":material/error:")


def next_step(page: str, key: str, **query: str) -> None:
    """The button at the end of a page that leads on."""
    st.divider()
    if st.button(t(key), type="primary", icon=":material/arrow_forward:", key=f"next_{page}"):
        go_to(page, **query)


def go_to(page: str, **query: str) -> None:
    """Switch to another page, keeping the language and what the page shall show."""
    st.switch_page(str(_PAGES / f"{page}.py"), query_params={"lang": language(), **query})


def link_to(page: str, label: str, icon: str | None = None, hint: str | None = None, **query: str) -> None:
    """A link to another page that keeps the language and says what the page shall show."""
    st.page_link(str(_PAGES / f"{page}.py"), label=label, icon=icon, help=hint, query_params={"lang": language(), **query})


def same_command(command: str) -> None:
    """The command that does what this page does."""
    with st.expander(t("shell.same_command"), icon=":material/terminal:"):
        st.code(command, language="bash")


def current_run_name() -> str | None:
    """The run in the page's address, if any."""
    return st.query_params.get(RUN)


def state_word(state: JobState) -> str:
    """A job's state as a word with its mark."""
    return t(f"shell.state_{state.state}")


def draw_state(state: JobState) -> None:
    """The state as a badge: word, mark and colour."""
    icon, colour = STATE_MARKS[state.state]
    st.badge(state_word(state), icon=f":material/{icon}:", color=colour)


def draw_failure(state: JobState) -> None:
    """Why a job failed, and the way out."""
    if state.problem and state.hint:
        st.error(f"{say(state.problem)}\n\n{say(state.hint)}", icon=":material/error:")


@st.fragment(run_every=POLL_SECONDS)
def watch_job(folder: str) -> None:
    """A live bar for an active job; when it ends the whole page draws itself anew, once."""
    job = Job(Path(folder))
    state = job.state()
    if not state.is_active:
        st.rerun()
    if state.state == "queued":
        draw_waiting(open_workspace(), job, state)
    else:
        draw_progress(state)
    st.caption(t("shell.safe_to_close"))


def draw_waiting(workspace: Workspace, job: Job, state: JobState) -> None:
    """For whom a job waits that has not begun."""
    place = place_in_queue(workspace, job)
    if place is not None:
        starts = start_words(place.seconds)
        if place.is_paused:
            key = "shell.class_paused_next" if place.before == 0 else "shell.class_paused"
        else:
            key = "shell.class_next" if place.before == 0 else "shell.class_waits"
        st.info(t(key, count=place.before, start=starts), icon=":material/hourglass_empty:")
        return
    holding, before = holder(workspace, state.device), waiting_before(workspace, job)
    if holding is not None and holding.id != job.id:
        words_ = t("shell.waiting_for_job", job=holding.id, device=state.device)
    elif before:
        words_ = t("shell.waiting_behind", count=len(before), device=state.device)
    else:
        words_ = t("shell.waiting_start")
    st.info(words_, icon=":material/hourglass_empty:")


def start_words(seconds: float | None) -> str:
    """When a job is expected to begin, as the end of a sentence."""
    if seconds is None:
        return t("shell.start_unknown")
    return t("shell.start_in", duration=duration(seconds)) if seconds >= _AT_ONCE_SECONDS else t("shell.start_now")


def draw_progress(state: JobState) -> None:
    """A bar with what a job does now and the time it still needs."""
    progress = state.progress
    label = say(progress.label) if progress.label else state_word(state)
    left = "" if progress.seconds_left is None else " · " + t("shell.time_left", duration=duration(progress.seconds_left))
    share = min(1.0, progress.done / progress.total) if progress.total else 0.0
    st.progress(share, text=f"{label} {progress.done}/{progress.total}{left}" if progress.total else label)
