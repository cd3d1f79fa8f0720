"""One job at a time per device, first come first served, without anybody in charge. A job may need several: `cuda:0,cuda:1`.

A worker waits by itself: it takes the device's lock file when no older job waits for the same device. The kernel releases the lock
when the worker ends, however it ends.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from core.classroom.place import member_of
from core.classroom.queue import queue_of
from core.jobs.active import active_jobs
from core.jobs.folder import Job
from core.workspace import Workspace

_POLL_SECONDS = 0.3
# Kinds of work that only wait for other jobs.
_NEED_NO_DEVICE = ("lesson",)


@contextmanager
def hold_device(workspace: Workspace, job: Job, is_cancelled: Callable[[], bool]) -> Iterator[bool]:
    """Wait for the job's devices, hold them for the block. Yields False when cancelled while waiting."""
    queue = queue_of(workspace)
    locks = (workspace.cache if queue is None else queue.root / "cache") / "locks"  # a class shares its devices
    locks.mkdir(parents=True, exist_ok=True)
    names = [name.replace(":", "-") for name in sorted(_parts(job.state().device))]
    if queue is not None:
        names.append(f"student-{member_of(workspace)}")  # one running job each
    with ExitStack() as stack:
        held = [stack.enter_context((locks / f"{name}.lock").open("w")) for name in names]
        if queue is not None:
            yield stack.enter_context(queue.take_turn(job, member_of(workspace), lambda: _try_locks(held), is_cancelled))
            return
        while not is_cancelled():
            if not waiting_before(workspace, job) and _try_locks(held):
                yield True
                return
            time.sleep(_POLL_SECONDS)
        yield False


def _parts(device: str) -> set[str]:
    return set(device.split(","))


def _try_locks(locks: list) -> bool:
    """All of them or none: who holds one while waiting for another may wait for somebody who does the same."""
    for number, lock in enumerate(locks):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for held in locks[:number]:
                fcntl.flock(held, fcntl.LOCK_UN)
            return False
    return True


def waiting_before(workspace: Workspace, job: Job) -> list[Job]:
    """The jobs that wait for one of the same devices and were asked for earlier."""
    own = job.state()
    return [other for other, state in active_jobs(workspace)
            if state.state == "queued" and _parts(state.device) & _parts(own.device) and (state.turn, other.id) < (own.turn, job.id)]


def holder(workspace: Workspace, device: str) -> Job | None:
    """The job that holds `device` now."""
    for job, state in active_jobs(workspace):
        if _parts(state.device) & _parts(device) and state.state in ("running", "stopping") and state.kind not in _NEED_NO_DEVICE:
            return job
    return None
