"""Is the process that once had this number still the same process?"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel

# Kept by the kernel in clock ticks; two readings of one process may differ by rounding.
_SAME_START_SECONDS = 0.05


class ProcessIdentity(BaseModel):
    """A process number and the moment it began: a recycled number belongs to a stranger.

    Attributes:
        pid: the number.
        started: seconds since the machine started. Not the time of day: that clock is set back now and then, and a living
            process would seem to be another one.
        boot: which start of the machine; numbers and moments come again after the next.
    """

    pid: int
    started: float
    boot: str = ""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Raises psutil.NoSuchProcess when there is none."""
        return cls(pid=pid, started=_seconds_since_boot(pid), boot=_boot_id())

    @classmethod
    def own(cls) -> ProcessIdentity:
        return cls.of(os.getpid())

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie has already ended."""
        try:
            if self.boot != _boot_id() or abs(_seconds_since_boot(self.pid) - self.started) > _SAME_START_SECONDS:
                return False
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _seconds_since_boot(pid: int) -> float:
    try:
        # Field 22 of proc_pid_stat(5); the name, field 2, stands in brackets and may hold spaces and brackets itself.
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return psutil.Process(pid).create_time()  # where there is no /proc


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
