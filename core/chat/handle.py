"""How to find the chat process of a workspace: `cache/chat/handle.json`, readable by its owner only. No torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from core.access.secret_file import write_secret
from core.classroom.place import models_home
from core.jobs.process import ProcessIdentity
from core.workspace import Workspace, read_json

HANDLE = "handle.json"
SERVERS = "serve-*"  # in the workspace's cache: a folder like the chat's for each `sweetspot serve`, named by its process


class Handle(BaseModel):
    """Where the process listens (loopback only), the token it wants to see, and which process it is."""

    port: int
    token: str
    process: ProcessIdentity


def chat_folder(workspace: Workspace) -> Path:
    return workspace.cache / "chat"


def worker_folder(workspace: Workspace) -> Path:
    """Where the chat process that answers this workspace keeps its handle: a class has one process, so each base is loaded once."""
    return chat_folder(models_home(workspace))


def read_handle(folder: Path) -> Handle | None:
    """The handle of the process that serves this folder; None when there is none alive."""
    try:
        handle = Handle.model_validate(read_json(folder / HANDLE))
    except (OSError, ValueError):
        return None
    return handle if handle.process.is_alive() else None


def write_handle(folder: Path, handle: Handle) -> None:
    """Write the handle so that nobody else can read it, not even for a moment."""
    write_secret(folder / HANDLE, handle.model_dump())


def remove_handle(folder: Path, token: str) -> None:
    """Take the handle away if it is still this process's own."""
    try:
        if read_json(folder / HANDLE)["token"] == token:
            (folder / HANDLE).unlink()
    except (OSError, ValueError, KeyError):
        pass
