"""Is the process that once had this number still the same process?"""

from __future__ import annotations

import os

import psutil
from pydantic import BaseModel

# Process start times are kept by the kernel in clock ticks; two readings of one process may differ by rounding.
_SAME_START_SECONDS = 0.05


class ProcessIdentity(BaseModel):
    """A process number and the moment it began: a recycled number belongs to a stranger."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def own(cls) -> ProcessIdentity:
        return cls.of(os.getpid())

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie has already ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= _SAME_START_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
