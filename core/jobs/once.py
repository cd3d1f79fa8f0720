"""Two clicks, two tabs, one job: a lock around "look whether it runs already, else start it"."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from core.workspace import Workspace, explain_full_disk


@contextmanager
def one_at_a_time(workspace: Workspace, what: str) -> Iterator[None]:
    """Hold the workspace's lock called `what` for the block; others wait for the moment it takes."""
    locks = workspace.cache / "locks"
    with explain_full_disk(locks):
        locks.mkdir(parents=True, exist_ok=True)
        lock = (locks / f"{what}.once").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
