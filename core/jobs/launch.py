"""Start, stop and wait for jobs. A started job no longer needs whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from core.errors import JobFailed
from core.jobs.folder import Job, JobState
from core.words import Text
from core.workspace import CHECKOUT

POLL_SECONDS = 0.25
TERM_GRACE_SECONDS = 10.0

# Held so that a child that ended is collected at the next start instead of staying a zombie.
_children: list[subprocess.Popen[bytes]] = []


def start_job(job: Job) -> None:
    """Start the job's worker in a session of its own; its output goes to the job's log, never to a pipe."""
    _children[:] = [child for child in _children if child.poll() is None]
    (job.folder / "stop").unlink(missing_ok=True)
    with job.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "core.jobs.worker", str(job.folder)],
            cwd=CHECKOUT, env=_worker_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children.append(child)


def _worker_environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MKL_THREADING_LAYER": "GNU",  # conda's MKL and torch's GNU OpenMP refuse each other in a child process
    }


def restart_job(job: Job) -> None:
    """Start a job again that stopped or failed, in the same folder."""
    state = job.state()
    job.write_state(JobState(kind=state.kind, device=state.device, created=time.time()))
    start_job(job)


def stop_job(job: Job, grace_seconds: float = 60.0) -> JobState:
    """Stop a job: ask, wait `grace_seconds`, then TERM and at last KILL its process group.

    A job that answers the request keeps what it has done; one that must be killed keeps what it saved.
    """
    job.request_stop()
    if _wait_until_ended(job, grace_seconds):
        return job.state()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        process = job.state().process
        if process is None or not process.is_alive():
            break
        os.killpg(process.pid, sign)  # the worker leads its own session, so the group is its own
        if _wait_until_ended(job, TERM_GRACE_SECONDS):
            break
    return job.state()


def _wait_until_ended(job: Job, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not job.state().is_active:
            return True
        time.sleep(POLL_SECONDS)
    return False


def wait_for_job(job: Job, on_state: Callable[[JobState], None] | None = None) -> JobState:
    """Block until the job has ended and its process is gone; `on_state` sees each look.

    Raises:
        JobFailed: the job failed; carries the worker's own problem and hint.
    """
    while True:
        state = job.state()
        if on_state:
            on_state(state)
        if not state.is_active and not (state.process and state.process.is_alive()):
            break
        for child in _children:
            child.poll()
        time.sleep(POLL_SECONDS)
    if state.state == "failed":
        raise JobFailed.from_texts(Text.from_json(state.problem or {}), Text.from_json(state.hint or {}))
    return state


def memory_bytes(state: JobState) -> int:
    """Resident memory of the job's process, 0 when it has ended."""
    try:
        return psutil.Process(state.process.pid).memory_info().rss if state.process else 0
    except psutil.Error:
        return 0
