"""One studio writes a workspace; a second one reads it, says who holds it, and takes over when the first is gone.

The kernel keeps the lock for as long as the server lives, however it ends, so nothing is left to clean up.
"""

from __future__ import annotations

import fcntl
import getpass
import platform
import threading
from pathlib import Path
from typing import IO

from core.errors import StudioError
from core.jobs.process import ProcessIdentity
from core.words import Text
from core.workspace import Workspace, read_json, read_only, write_json

# Workspace -> its lock, held open until this process ends.
_held: dict[Path, IO[str]] = {}
_taking = threading.Lock()


def hold_workspace(workspace: Workspace) -> Text | None:
    """Hold the workspace for this server, or say who does; None when it is ours. Cheap enough for every redraw.

    A workspace that cannot be written is nobody's: everybody may read it.
    """
    with _taking:
        if workspace.root in _held:
            return None
        try:
            lock = (workspace.cache / "studio.lock").open("w", encoding="utf-8")
        except OSError as error:
            read_only.pop(workspace.root, None)
            return Text("{root} cannot be written ({reason})", root=workspace.root, reason=error.strerror)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            who = _holder(workspace)
            read_only[workspace.root] = who
            return who
        read_only.pop(workspace.root, None)
        _held[workspace.root] = lock
        try:
            write_json(workspace.cache / "studio.json", {
                "process": ProcessIdentity.own().model_dump(), "host": platform.node(), "user": _user()})
        except (OSError, StudioError):
            pass  # a full disk: the lock itself needs no room, only its name is missing
        return None


def _holder(workspace: Workspace) -> Text:
    try:
        holder = read_json(workspace.cache / "studio.json")
        return Text("the studio of {user} on {host}, process {pid},", user=holder["user"], host=holder["host"],
                    pid=holder["process"]["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return Text("another studio")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "?"
