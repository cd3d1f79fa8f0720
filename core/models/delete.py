"""Deleting a model, unless something still needs it. No torch."""

from __future__ import annotations

from core.errors import StudioError
from core.housekeeping.trash import throw_away
from core.housekeeping.uses import refuse_use
from core.workspace import Workspace, check_name


def find_deletable(workspace: Workspace, name: str) -> None:
    """Raises StudioError when there is no model of this name, or a job, a run, the chat or a server needs it."""
    folder = workspace.models / check_name(name, "model")
    if not folder.is_dir() and not folder.is_symlink():
        raise StudioError("No model is called {name}.", "`sweetspot models list` shows the models that are here.", name=name)
    refuse_use(workspace, folder)


def delete_model(workspace: Workspace, name: str) -> None:
    """Move a model of the workspace to the trash; of a linked one only the link is removed, never the folder it leads to.

    Raises:
        StudioError: there is none of this name, or something needs it.
    """
    find_deletable(workspace, name)
    folder = workspace.models / name
    if folder.is_symlink():
        folder.unlink()
        return
    throw_away(workspace, folder)
