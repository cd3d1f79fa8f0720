"""One job at a time per device, first come first served, without anybody in charge.

A worker waits by itself: it takes the device's lock file when no older job waits for the same device. The kernel releases the lock
when the worker ends, however it ends.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.jobs.active import active_jobs
from core.jobs.folder import Job
from core.workspace import Workspace

_POLL_SECONDS = 0.3
# Kinds of work that only wait for other jobs.
_NEED_NO_DEVICE = ("lesson",)


@contextmanager
def hold_device(workspace: Workspace, job: Job, is_cancelled: Callable[[], bool]) -> Iterator[bool]:
    """Wait for the job's device, hold it for the block. Yields False when cancelled while waiting."""
    device = job.state().device
    locks = workspace.cache / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{device.replace(':', '-')}.lock").open("w") as lock:
        while not is_cancelled():
            if not waiting_before(workspace, job) and _try_lock(lock):
                yield True
                return
            time.sleep(_POLL_SECONDS)
        yield False


def _try_lock(lock) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def waiting_before(workspace: Workspace, job: Job) -> list[Job]:
    """The jobs that wait for the same device and were asked for earlier."""
    own = job.state()
    return [other for other, state in active_jobs(workspace)
            if state.state == "queued" and state.device == own.device and (state.created, other.id) < (own.created, job.id)]


def holder(workspace: Workspace, device: str) -> Job | None:
    """The job that holds `device` now."""
    for job, state in active_jobs(workspace):
        if state.device == device and state.state in ("running", "stopping") and state.kind not in _NEED_NO_DEVICE:
            return job
    return None
