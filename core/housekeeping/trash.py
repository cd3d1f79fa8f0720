"""The trash of a workspace: what was thrown away waits here until it is restored or the trash is emptied.

    trash/<where it lay, quoted>~<moment>-<4 hex digits>

Throwing away is one rename, so it works on a full disk, and a crash leaves the thing either where it was or whole in the trash.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from core.classroom.place import STUDENTS
from core.errors import StudioError
from core.housekeeping.room import freed_bytes
from core.workspace import Workspace, explain_full_disk

PARTS = ("datasets", "recipes", "runs", "models", "jobs")
_RESTORED = (*PARTS, STUDENTS)


@dataclass(frozen=True)
class Thrown:
    """One thing in the trash. `origin`: where it lay, relative to the workspace; `thrown`: local time as 20261122-151408."""

    folder: Path
    origin: str
    thrown: str

    @property
    def id(self) -> str:
        return self.folder.name.rpartition("~")[2]

    @property
    def freed_bytes(self) -> int:
        """What comes back when it is deleted for good."""
        return freed_bytes([self.folder])


def trash_folder(workspace: Workspace) -> Path:
    return workspace.root / "trash"


def throw_away(workspace: Workspace, path: Path) -> Thrown:
    """Move a file or folder of the workspace into the trash.

    Raises:
        StudioError: it is not there any more, or the workspace cannot be written.
    """
    origin = path.relative_to(workspace.root).as_posix()
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    target = trash_folder(workspace) / f"{quote(origin, safe='')}~{stamp}"
    with explain_full_disk(path):
        target.parent.mkdir(exist_ok=True)
        try:
            os.replace(path, target)
        except FileNotFoundError as error:
            raise StudioError("{path} is gone already.", "Look again: somebody else deleted it.", path=path) from error
    return Thrown(target, origin, stamp[:-5])


def list_trash(workspace: Workspace) -> list[Thrown]:
    """What lies in the trash, oldest first."""
    found = []
    if trash_folder(workspace).is_dir():
        for path in trash_folder(workspace).iterdir():
            quoted, mark, stamp = path.name.rpartition("~")
            if mark and not path.name.startswith("."):
                found.append(Thrown(path, unquote(quoted), stamp[:-5]))
    return sorted(found, key=lambda thrown: thrown.thrown)


def find_thrown(workspace: Workspace, name: str) -> Thrown:
    """The thing in the trash of this id, or the only one whose origin contains `name`.

    Raises:
        StudioError: none or several answer to it.
    """
    things = list_trash(workspace)
    matching = [thing for thing in things if thing.id == name] or [thing for thing in things if name and name in thing.origin]
    if len(matching) != 1:
        raise StudioError("{count} things in the trash answer to {name!r}.", "`sweetspot workspace trash list` shows them with their ids.",
                          count=len(matching), name=name)
    return matching[0]


def restore(workspace: Workspace, thrown: Thrown) -> Path:
    """Put it back where it lay.

    Raises:
        StudioError: the place is taken, or its name is not one that this program gave.
    """
    target = workspace.root / thrown.origin
    parts = Path(thrown.origin).parts
    if len(parts) < 2 or parts[0] not in _RESTORED or ".." in parts or thrown.origin.startswith("/"):
        raise StudioError("{path} does not say where it lay.", "Move it by hand to where it belongs.", path=thrown.folder)
    if target.exists():
        raise StudioError("{path} exists already.", "Choose another name, or delete the old one first.", path=target)
    if not target.parent.is_dir():
        raise StudioError("{path} cannot go back: {parent} is gone.", "Restore that first.", path=thrown.origin, parent=target.parent.name)
    with explain_full_disk(target):
        try:
            os.replace(thrown.folder, target)
        except FileNotFoundError as error:
            raise StudioError("{path} is gone already.", "Look again: somebody else deleted it.", path=thrown.origin) from error
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise StudioError("{path} exists already.", "Choose another name, or delete the old one first.", path=target) from error
    return target


def empty_trash(workspace: Workspace, things: list[Thrown] | None = None) -> int:
    """Delete what is in the trash, or some of it, for good; returns the bytes that came back.

    Raises:
        StudioError: something cannot be deleted.
    """
    doomed = list_trash(workspace) if things is None else things
    freed = freed_bytes([thing.folder for thing in doomed])
    for thing in doomed:
        hidden = thing.folder.with_name(f".{thing.id}.deleted")
        with explain_full_disk(thing.folder):
            try:
                os.replace(thing.folder, hidden)  # in one step out of sight, then piece by piece
            except FileNotFoundError:
                continue
            _delete(hidden)
    for left in trash_folder(workspace).glob(".*.deleted"):  # of an emptying that was killed
        with explain_full_disk(left):
            _delete(left)
    return freed


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
