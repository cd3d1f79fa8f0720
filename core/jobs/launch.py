"""Start, stop and wait for jobs. A started job no longer needs whoever started it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from core.errors import JobFailed, StudioError
from core.jobs.folder import Job, JobState
from core.jobs.process import ProcessIdentity
from core.jobs.turns import next_turn
from core.machine import seen_alone
from core.words import Text
from core.workspace import CHECKOUT, Workspace, explain_full_disk

POLL_SECONDS = 0.25
TERM_GRACE_SECONDS = 10.0
# A worker says that it has ended a moment before it goes: torch takes its time.
EXIT_SECONDS = 10.0

# Held so that a child that ended is collected at the next start instead of staying a zombie.
_children: list[subprocess.Popen[bytes]] = []


def start_job(job: Job) -> None:
    """Start the job's worker in a session of its own; its output goes to the job's log, never to a pipe.

    Raises:
        StudioError: a worker has this job already.
    """
    with _sole_launcher(job):
        _launch(job)


def restart_job(job: Job) -> None:
    """Start a job again that stopped or failed, in the same folder.

    Raises:
        StudioError: a worker has this job already.
    """
    with _sole_launcher(job):
        state = job.state()
        job.write_state(JobState(kind=state.kind, device=state.device, created=time.time(),
                                 asked=next_turn(Workspace(job.folder.parent.parent))))
        _launch(job)


@contextmanager
def _sole_launcher(job: Job) -> Iterator[None]:
    """One launch at a time, and none while a worker lives: two tabs may ask at once."""
    with explain_full_disk(job.folder):
        lock = (job.folder / "launch.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if job.has_worker() and (job.state().is_active or not _wait_until_ended(job, EXIT_SECONDS)):
            raise StudioError("{job} is at work already.", "Wait for its end, or stop it first with `sweetspot run stop {job}`.",
                              job=job.id)
        yield


def _launch(job: Job) -> None:
    _children[:] = [child for child in _children if child.poll() is None]
    (job.folder / "stop").unlink(missing_ok=True)
    (job.folder / "launched.json").unlink(missing_ok=True)
    with explain_full_disk(job.log):
        log = job.log.open("ab")
    with log:
        child = subprocess.Popen(
            [sys.executable, "-m", "core.jobs.worker", str(job.folder)],
            cwd=CHECKOUT, env=worker_environment() | seen_alone(job.state().device), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
    _children.append(child)
    try:
        job.note_launch(ProcessIdentity.of(child.pid))
    except psutil.NoSuchProcess:
        pass  # it has ended already, and another thread has collected it


def worker_environment() -> dict[str, str]:
    """The environment of every worker.

    OpenMP threads that wait for each other must sleep, not spin: with a second busy process on two cores, spinning made small
    matrix products 3 to 9 times slower (benchmarks/threads.py).
    """
    return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPUs have the numbers that the driver's own tools show
        "MKL_THREADING_LAYER": "GNU",  # conda's MKL and torch's GNU OpenMP refuse each other in a child process
    }


def stop_job(job: Job, grace_seconds: float = 60.0) -> JobState:
    """Stop a job: ask, wait `grace_seconds`, then TERM and at last KILL its process group.

    A job that answers the request keeps what it has done; one that must be killed keeps what it saved.
    """
    if not job.state().is_active:
        return job.state()
    job.request_stop()
    if _wait_until_ended(job, grace_seconds):
        return job.state()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        process = job.process()
        if process is None or not process.is_alive():
            break
        _send(process.pid, sign)
        if _wait_until_ended(job, TERM_GRACE_SECONDS):
            break
    return job.state()


def _send(pid: int, sign: signal.Signals) -> None:
    """To the whole group when the worker leads one, as every launched worker does; one started by hand may not."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, sign)
        else:
            os.kill(pid, sign)
    except ProcessLookupError:
        pass  # it ended a moment ago


def _wait_until_ended(job: Job, seconds: float) -> bool:
    """Whether the job ends and its process goes within that time."""
    deadline = time.monotonic() + seconds
    while job.state().is_active or job.has_worker():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


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
        return psutil.Process(state.process.pid).memory_info().rss if state.process and state.process.is_alive() else 0
    except psutil.Error:
        return 0
