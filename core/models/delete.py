"""Deleting a model, unless something still needs it. No torch."""

from __future__ import annotations

from core.errors import StudioError
from core.housekeeping.trash import throw_away
from core.jobs.active import active_jobs
from core.models.embedded import EMBEDDED_NAME
from core.runs import list_runs
from core.workspace import Workspace, check_name


def users_of(workspace: Workspace, name: str) -> list[str]:
    """What needs the model: jobs at work that name it, and runs whose checkpoints lie over it."""
    names = {name, str(workspace.models / name)} | ({"embedded"} if name == EMBEDDED_NAME else set())
    found = [job.id for job, _ in active_jobs(workspace) if names & _words(job.spec())]
    for run in list_runs(workspace):
        try:
            if run.recipe().model.source in names and run.id not in found:
                found.append(run.id)
        except (StudioError, OSError):
            continue  # a run whose recipe is gone needs nothing any more
    return found


def _words(value: object) -> set[str]:
    """Every text in a job's spec."""
    if isinstance(value, dict):
        return set().union(*map(_words, value.values()))
    if isinstance(value, list):
        return set().union(*map(_words, value))
    return {value} if isinstance(value, str) else set()


def find_deletable(workspace: Workspace, name: str) -> None:
    """Raises StudioError when there is no model of this name, or something needs it."""
    folder = workspace.models / check_name(name, "model")
    if not folder.is_dir() and not folder.is_symlink():
        raise StudioError("No model is called {name}.", "`sweetspot models list` shows the models that are here.", name=name)
    users = users_of(workspace, name)
    if users:
        raise StudioError("The model {name} is in use by {users}.",
                          "Delete those runs first (`sweetspot run delete`), or wait for the job; nothing is left of a checkpoint without "
                          "its base.",
                          name=name, users=", ".join(users[:3]) + (", ..." if len(users) > 3 else ""))


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
