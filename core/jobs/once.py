"""Two clicks, two tabs, one job: a lock around "look whether it runs already, else start it"."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from core.workspace import Workspace


@contextmanager
def one_at_a_time(workspace: Workspace, what: str) -> Iterator[None]:
    """Hold the workspace's lock called `what` for the block; others wait for the moment it takes."""
    locks = workspace.cache / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{what}.once").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
