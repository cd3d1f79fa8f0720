"""What files take on the disk, hard links counted once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own blocks are (stat(2))


def used_bytes(paths: Iterable[Path]) -> int:
    """What these files and folders take on the disk, a file with several names once."""
    return sum(size for size, _, _ in _inodes(paths).values())


def freed_bytes(paths: Iterable[Path]) -> int:
    """What comes back when these go: a file that has another name elsewhere stays on the disk."""
    return sum(size for size, names, seen in _inodes(paths).values() if seen >= names)


def _inodes(paths: Iterable[Path]) -> dict[tuple[int, int], tuple[int, int, int]]:
    """(device, inode) -> (bytes on the disk, names it has anywhere, names seen here)."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for path in paths:
        for state in _states(path):
            key = (state.st_dev, state.st_ino)
            seen = found[key][2] if key in found else 0
            found[key] = (state.st_blocks * _BLOCK_BYTES, state.st_nlink, seen + 1)
    return found


def _states(path: Path) -> Iterator[os.stat_result]:
    """Of every file below `path`; links are not followed, and what vanishes meanwhile is no error."""
    try:
        if path.is_symlink() or not path.is_dir():
            yield path.lstat()
            return
        with os.scandir(path) as entries:
            for entry in list(entries):
                yield from _states(Path(entry.path))
    except OSError:
        return
