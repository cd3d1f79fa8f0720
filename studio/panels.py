"""What several pages draw alike: the frame, the path of a first visit, errors, jobs that run, the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from core.errors import StudioError
from core.jobs.folder import Job, JobState, list_jobs
from core.workspace import Workspace
from studio.i18n import explain, language, plain, say, t
from studio.session import LANGUAGE, RUN

_PAGES = Path(__file__).resolve().parent.parent / "pages"
PATH = ("data", "recipe", "train", "compare", "merge", "chat")
# Live panels look at the files this often; charts and logs are read from where the last look ended.
POLL_SECONDS = 2.0


def draw_sidebar() -> None:
    """Language switch, and what runs now."""
    with st.sidebar:
        st.segmented_control("Language / 语言", ["en", "zh"], format_func=lambda code: {"en": "English", "zh": "中文"}[code],
                             key=LANGUAGE, label_visibility="collapsed", required=True, on_change=_keep_language)
        active = [job for job in list_jobs(Workspace.open()) if job.state().is_active]
        if active:
            st.caption(t("shell.running_now"))
            for job in active:
                st.markdown(f"- {plain(job.id)}")


def _keep_language() -> None:
    st.query_params["lang"] = st.session_state[LANGUAGE]


def open_page(name: str) -> Workspace:
    """Draw a page's title and the question it answers; returns the workspace it works in."""
    st.title(t(f"{name}.title"))
    st.caption(t(f"{name}.question"))
    return Workspace.open()


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


def same_command(command: str) -> None:
    """The command that does what this page does."""
    with st.expander(t("shell.same_command")):
        st.code(command, language="bash")


def current_run_name() -> str | None:
    """The run in the page's address, if any."""
    return st.query_params.get(RUN)


def state_word(state: JobState) -> str:
    """A job's state as a word with its mark."""
    return t(f"shell.state_{state.state}")


def draw_failure(state: JobState) -> None:
    """Why a job failed, and the way out."""
    if state.problem and state.hint:
        st.error(f"{say(state.problem)}\n\n{say(state.hint)}", icon=":material/error:")


@st.fragment(run_every=POLL_SECONDS)
def watch_job(folder: str) -> None:
    """A live bar for an active job; when it ends the whole page draws itself anew, once."""
    state = Job(Path(folder)).state()
    if not state.is_active:
        st.rerun()
    draw_progress(state)
    st.caption(t("shell.safe_to_close"))


def draw_progress(state: JobState) -> None:
    """A bar with what a job does now and the time it still needs."""
    progress = state.progress
    label = say(progress.label) if progress.label else state_word(state)
    left = "" if progress.seconds_left is None else " · " + t("shell.seconds_left", seconds=round(progress.seconds_left))
    share = min(1.0, progress.done / progress.total) if progress.total else 0.0
    st.progress(share, text=f"{label} {progress.done}/{progress.total}{left}" if progress.total else label)
