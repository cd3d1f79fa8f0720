"""Who needs a run, a model or a dataset now: what is in use is never thrown away, and the refusal says by whom.

The models of a class are its students' too, so there every student's workspace is asked as well.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from core.chat.client import call, find_worker
from core.chat.handle import SERVERS, worker_folder
from core.classroom.place import CLASS_FILE, STUDENTS
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.jobs.folder import Job
from core.models.embedded import EMBEDDED_NAME
from core.recipe.schema import Recipe
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
        found += [Text("it is the base of the run {run}", run=run.id) for run in list_runs(workspace)
                  if _means(_base_of(run), _names(folder), folder)]
        found += [use for student in _students(workspace) for use in _uses_of_student(student, folder)]
    if folder.parent == workspace.datasets:
        found += [Text("the run {run} learned from it", run=run.id) for run in list_runs(workspace) if folder.name in _datasets_of(run)]
    return found


def _students(workspace: Workspace) -> list[Workspace]:
    """The students' workspaces of the class that lies in `workspace`; none when it is no class."""
    if not (workspace.root / CLASS_FILE).exists():
        return []
    return [Workspace(folder) for folder in sorted((workspace.root / STUDENTS).glob("*/"))
            if (folder / "runs").is_dir() and (folder / "jobs").is_dir()]


def _uses_of_student(student: Workspace, folder: Path) -> list[Text]:
    """Why a student needs a model of the class: jobs at work, runs trained on it, a server that holds it."""
    own, name = student.models / folder.name, student.root.name
    has_own = own.is_dir() and not own.is_symlink()  # then the name means theirs
    names = {str(folder)} if has_own else _names(folder) | {str(own)}
    found = [Text("the job {job} of {student} works with it", job=job.id, student=name) for job, _ in active_jobs(student)
             if _names_model(job, names, folder)]
    found += [Text("it is the base of the run {run} of {student}", run=run.id, student=name) for run in list_runs(student)
              if _means(_base_of(run), names, folder)]
    if folder in _held(student, *student.cache.glob(SERVERS)):
        found.append(Text("a server of {student} holds it in memory", student=name))
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
    held = _held(workspace, worker_folder(workspace), *workspace.cache.glob(SERVERS))
    return {parent for folder in held for parent in (folder, *folder.parents)
            if parent.parent in (workspace.runs, workspace.models)}


def _held(workspace: Workspace, *places: Path) -> set[Path]:
    """Every folder, wherever it lies, that the processes with their handles in `places` hold in memory."""
    found: set[Path] = set()
    for place in places:
        handle = find_worker(workspace, place)
        try:
            found |= {Path(folder) for folder in call(handle, "GET", "/state").get("folders", [])} if handle else set()
        except (OSError, ValueError, http.client.HTTPException):
            continue
    return found


def _mentions(job: Job, workspace: Workspace, folder: Path) -> bool:
    """Whether the spec of a job at work, or its recipe, names what lies in `folder`."""
    try:
        spec, recipe = _asked(job)
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


def _names_model(job: Job, names: set[str], folder: Path) -> bool:
    """Whether a job of a student works with the model in `folder`, which it may call by any of these names."""
    try:
        spec, recipe = _asked(job)
    except (OSError, StudioError):
        return True
    return bool({*_strings(spec)} & names) or (recipe is not None and _means(recipe.model.source, names, folder))


def _means(source: str, names: set[str], folder: Path) -> bool:
    """Whether a recipe's model source is the model in `folder`: one of its names, or a path that leads there."""
    try:
        return source in names or (source.startswith(("/", "~", ".")) and Path(source).expanduser().resolve() == folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def _asked(job: Job) -> tuple[dict[str, Any], Recipe | None]:
    return job.spec(), Run(job.folder).recipe() if (job.folder / "recipe.yaml").exists() else None


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
