"""In which order jobs were asked for, whatever the clock does meanwhile.

Wall clocks jump: somebody sets them, a laptop wakes up, a virtual machine goes on from a snapshot. Who asks next gets the time, or the
last turn given plus a little where the clock has gone back behind it: a hybrid logical clock (Kulkarni and others, 2014) of one node.
"""

from __future__ import annotations

import time
from pathlib import Path

from core.classroom.place import class_root
from core.jobs.once import one_at_a_time
from core.workspace import Workspace, write_text

LAST_TURN = "last-turn"
_STEP_SECONDS = 1e-3


def next_turn(workspace: Workspace) -> float:
    """A number greater than all that were given in this workspace, or in the whole class that it is part of.

    Raises:
        StudioError: the workspace must not be written, or the disk is full.
    """
    shared = Workspace(class_root(workspace) or workspace.root)
    path = shared.cache / LAST_TURN
    with one_at_a_time(shared, "turn"):
        turn = after(_read(path))
        write_text(path, repr(turn))
    return turn


def after(last: float) -> float:
    """The present time, or a moment after `last` when the clock stands before that."""
    return max(time.time(), last + _STEP_SECONDS)


def _read(path: Path) -> float:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0.0  # nobody has asked yet, or the cache was emptied: the clock decides
