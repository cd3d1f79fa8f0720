"""What one student may use of the machine they all share: disk and memory, each with a sentence for when it is reached."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil

from core.classroom.place import class_root
from core.classroom.room import Classroom, ClassSettings
from core.errors import StudioError
from core.workspace import Workspace

_MEASURE_SECONDS = 5.0
_FAR_OVER = 1.25
_measured: dict[str, tuple[float, int]] = {}
_lock = threading.Lock()


def used_bytes(folder: Path) -> int:
    """Bytes under `folder`, a file with several names once; what a link points to is somebody else's."""
    total, open_folders, seen = 0, [str(folder)], set()
    while open_folders:
        try:
            with os.scandir(open_folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(entry.path)
                    elif not entry.is_symlink():
                        state = entry.stat(follow_symlinks=False)
                        if state.st_nlink == 1 or state.st_ino not in seen:  # snapshots share what is the same in all of them
                            total += state.st_size
                            seen.add(state.st_ino)
        except OSError:
            continue  # deleted a moment ago
    return total


def student_bytes(workspace: Workspace, at_most_seconds_old: float = _MEASURE_SECONDS) -> int:
    """What a student's workspace takes on disk; walked through again when the last look is older than asked."""
    key, now = str(workspace.root), time.monotonic()
    with _lock:
        known = _measured.get(key)
    if known and now - known[0] < at_most_seconds_old:
        return known[1]
    size = used_bytes(workspace.root)
    with _lock:
        _measured[key] = (now, size)
    return size


def limits_of(workspace: Workspace) -> ClassSettings | None:
    """The limits of a student's workspace; None for a teacher and for whoever is in no class."""
    root = class_root(workspace)
    return None if root is None or root == workspace.root else Classroom(Workspace(root)).settings()


def check_disk(workspace: Workspace, coming_bytes: int = 0) -> None:
    """Raise a StudioError when a student's share of the disk is used up, or would be by `coming_bytes` more."""
    limits = limits_of(workspace)
    if limits is None:
        return
    used = student_bytes(workspace, 0.0 if coming_bytes else _MEASURE_SECONDS) + coming_bytes
    if used > limits.disk_bytes:
        raise StudioError("Your share of the disk is used up: {used} of {most} GB.",
                          "Delete runs, merged models or datasets you no longer need and empty the trash (Home, Housekeeping), or ask your "
                          "teacher for more.",
                          used=round(used / 1e9, 2), most=round(limits.disk_bytes / 1e9, 2))


def check_memory(workspace: Workspace) -> None:
    """Raise a StudioError when this process, with its children, holds more memory than a student may."""
    limits = limits_of(workspace)
    if limits is None:
        return
    used = process_bytes()
    if used > limits.memory_bytes:
        raise StudioError("This needs more memory than one student may use here: {used} of {most} GB.",
                          "Make the length or the micro-batch smaller, choose a smaller model, or ask your teacher for more.",
                          used=round(used / 1e9, 2), most=round(limits.memory_bytes / 1e9, 2))


def is_far_over_memory(workspace: Workspace) -> bool:
    """Whether waiting for a polite end could cost the others their memory."""
    limits = limits_of(workspace)
    return limits is not None and process_bytes() > _FAR_OVER * limits.memory_bytes


def process_bytes() -> int:
    """Resident memory of this process and of those it started."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total
