"""Who needs a run, a model or a dataset now: what is in use is never thrown away, and the refusal says by whom."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from core.chat.client import call, find_worker
from core.chat.handle import SERVERS, worker_folder
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.jobs.folder import Job
from core.models.embedded import EMBEDDED_NAME
from core.runs import Run, list_runs
from core.words import Text
from core.workspace import Workspace


def uses_of(workspace: Workspace, folder: Path) -> list[Text]:
    """Why the run, model, dataset or job in `folder` must stay now; empty when nobody needs it."""
    found: list[Text] = []
    if folder.parent in (workspace.runs, workspace.jobs):
        job = Job(folder)
        if job.state().is_active or job.has_worker():
            found.append(Text("it is still at work"))
    found += [Text("the job {job} works with it", job=job.id) for job, _ in active_jobs(workspace)
              if job.folder != folder and _mentions(job, workspace, folder)]
    if folder.parent in (workspace.runs, workspace.models) and folder in chat_folders(workspace):
        found.append(Text("the chat or a server holds it in memory, the chat until ten minutes after its last question"))
    if folder.parent == workspace.models:
        found += [Text("it is the base of the run {run}", run=run.id) for run in list_runs(workspace) if _base_of(run) in _names(folder)]
    if folder.parent == workspace.datasets:
        found += [Text("the run {run} learned from it", run=run.id) for run in list_runs(workspace) if folder.name in _datasets_of(run)]
    return found


def refuse_use(workspace: Workspace, folder: Path) -> None:
    """Raises StudioError when somebody needs what lies in `folder`."""
    uses = uses_of(workspace, folder)
    if uses:
        raise StudioError("{name} is in use: {reason}.",
                          "Wait for its end, or stop or delete first what needs it; what is in use is never thrown away.",
                          name=folder.name, reason=uses[0])


def chat_folders(workspace: Workspace) -> set[Path]:
    """The runs and models of this workspace that the chat, or a `sweetspot serve`, holds in memory."""
    found: set[Path] = set()
    for place in (worker_folder(workspace), *workspace.cache.glob(SERVERS)):
        handle = find_worker(workspace, place)
        try:
            folders = [Path(folder) for folder in call(handle, "GET", "/state").get("folders", [])] if handle else []
        except (OSError, ValueError, http.client.HTTPException):
            folders = []
        found |= {parent for folder in folders for parent in (folder, *folder.parents)
                  if parent.parent in (workspace.runs, workspace.models)}
    return found


def _mentions(job: Job, workspace: Workspace, folder: Path) -> bool:
    """Whether the spec of a job at work, or its recipe, names what lies in `folder`."""
    try:
        spec = job.spec()
        recipe = Run(job.folder).recipe() if (job.folder / "recipe.yaml").exists() else None
    except (OSError, StudioError):
        return True  # it cannot be told, so nothing of its surroundings is touched
    words = set(_strings(spec))
    if folder.parent == workspace.runs:
        return any(word == folder.name or word.startswith(f"{folder.name}@") for word in words)
    if recipe is not None and folder.parent == workspace.models:
        words.add(recipe.model.source)
    if recipe is not None and folder.parent == workspace.datasets:
        words |= {source.dataset for source in recipe.data.sources} | {recipe.probe_dataset}
    return bool(words & _names(folder))


def _names(folder: Path) -> set[str]:
    """Every word by which a recipe or a job may mean this folder."""
    return {folder.name, str(folder), *(["embedded"] if folder.name == EMBEDDED_NAME else [])}


def _strings(data: Any) -> list[str]:
    if isinstance(data, dict):
        return [text for value in data.values() for text in _strings(value)]
    if isinstance(data, list):
        return [text for value in data for text in _strings(value)]
    return [data] if isinstance(data, str) else []


def _base_of(run: Run) -> str:
    try:
        return run.recipe().model.source
    except (OSError, StudioError):
        return ""


def _datasets_of(run: Run) -> set[str]:
    """By the run's own record, which outlives a recipe that can no longer be read."""
    try:
        names = {entry["dataset"] for entry in run.dataset()["sources"]}
    except (OSError, ValueError, KeyError, TypeError):
        names = set()
    try:
        return names | {run.recipe().probe_dataset}
    except (OSError, StudioError, json.JSONDecodeError):
        return names
