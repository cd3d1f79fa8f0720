"""What may go without being missed: leftovers, the state for a resume of runs that are done, old jobs, and what no run uses.

Nothing in use is ever proposed; what somebody might expect to go is listed with who needs it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.classroom.place import STUDENTS
from core.data.library import list_datasets
from core.errors import StudioError
from core.housekeeping.room import freed_bytes, used_bytes
from core.housekeeping.trash import PARTS, Thrown, throw_away, trash_folder
from core.housekeeping.uses import uses_of
from core.jobs.folder import Job
from core.jobs.once import one_at_a_time
from core.models.embedded import EMBEDDED_NAME
from core.runs import list_runs
from core.words import Text
from core.workspace import Workspace, has_ended

Kind = Literal["leftover", "resume", "job", "failed_run", "model", "dataset"]
USUAL: tuple[Kind, ...] = ("leftover", "resume", "job", "failed_run")
# Jobs whose folder a page still shows: the newest of these kinds stay.
_SHOWN_KINDS = ("lesson", "merge", "ask")
_DAY_SECONDS = 86_400.0
_LEFTOVER = re.compile(r"\..+\.(?:(?P<pid>\d+)-[0-9a-f]{8}\.(?:tmp|partial)|[0-9a-f]{6}\.deleted)")


@dataclass(frozen=True)
class Candidate:
    """One thing that may go, or that must stay for `kept_by`."""

    path: Path
    kind: Kind
    why: Text
    kept_by: Text | None = None


@dataclass(frozen=True)
class Room:
    """What the workspace takes, in bytes: by part, a class's students too, the trash, what a prune would give back, and what is free."""

    by_part: dict[str, int]
    trash: int
    prunable: int
    free: int


def read_room(workspace: Workspace) -> Room:
    """Look at every file once; on a workspace of many thousands of files this takes a second or more."""
    parts = (*PARTS, "cache", *([STUDENTS] if (workspace.root / STUDENTS).is_dir() else []))
    by_part = {part: used_bytes([workspace.root / part]) for part in parts}
    prunable = freed_bytes([candidate.path for candidate in what_may_go(workspace) if candidate.kept_by is None])
    return Room(by_part, freed_bytes([trash_folder(workspace)]), prunable, workspace.free_bytes())


def what_may_go(workspace: Workspace, kinds: tuple[Kind, ...] = USUAL, older_than_days: float = 7.0) -> list[Candidate]:
    """Everything of these kinds that may go; jobs and failed runs only when they ended so long ago."""
    finders = {"leftover": _leftovers, "resume": _resume_states, "model": _unused_models, "dataset": _unused_datasets}
    found: list[Candidate] = []
    for kind in kinds:
        if kind in finders:
            found += finders[kind](workspace)
        else:
            found += _ended_jobs(workspace, kind, older_than_days)
    return found


def prune(workspace: Workspace, candidates: list[Candidate]) -> list[Thrown]:
    """Move them to the trash; each is looked at once more, because somebody may have begun to use it since it was listed."""
    thrown = []
    with one_at_a_time(workspace, "housekeeping"):
        for candidate in candidates:
            if candidate.kept_by is None and not uses_of(workspace, _owner(workspace, candidate.path)):
                try:
                    thrown.append(throw_away(workspace, candidate.path))
                except StudioError:
                    if candidate.path.exists():
                        raise
    return thrown


def _owner(workspace: Workspace, path: Path) -> Path:
    """The run, model, dataset or job that a path belongs to."""
    return workspace.root.joinpath(*path.relative_to(workspace.root).parts[:2])


def _leftovers(workspace: Workspace) -> Iterator[Candidate]:
    """Half-written and half-deleted things whose process is gone, up to three levels deep: nothing is written deeper."""
    places = [workspace.root / part for part in PARTS]
    places += [folder for part in ("runs", "jobs") for folder in (workspace.root / part).glob("*/") if not folder.name.startswith(".")]
    places += [folder for folder in workspace.runs.glob("*/*/") if folder.name in ("checkpoints", "resume")]
    for place in places:
        for path in place.glob(".*"):
            match = _LEFTOVER.fullmatch(path.name)
            if match and (match["pid"] is None or has_ended(match["pid"])):
                yield Candidate(path, "leftover", Text("left half-written by a process that is gone"))


def _resume_states(workspace: Workspace) -> Iterator[Candidate]:
    for run in list_runs(workspace):
        if (run.folder / "resume").is_dir() and run.state().state == "finished":
            uses = uses_of(workspace, run.folder)
            yield Candidate(run.folder / "resume", "resume", Text("for going on with a training that has finished"),
                            uses[0] if uses else None)


def _ended_jobs(workspace: Workspace, kind: Kind, days: float) -> Iterator[Candidate]:
    parent = workspace.jobs if kind == "job" else workspace.runs
    shown: set[str] = set()
    for folder in sorted(parent.iterdir(), reverse=True):
        if folder.name.startswith(".") or not (folder / "spec.json").exists():
            continue
        job, state = Job(folder), Job(folder).state()
        if kind == "job" and state.kind in _SHOWN_KINDS and state.kind not in shown:
            shown.add(state.kind)
            continue
        if kind == "failed_run" and (state.state != "failed" or any((folder / "checkpoints").glob("[0-9]*"))):
            continue
        age = abs(time.time() - (state.ended or state.heartbeat or state.created)) / _DAY_SECONDS  # abs: the clock may have been set back
        if state.is_active or age < days:
            continue
        uses = uses_of(workspace, folder)
        why = Text("a job that ended {days} days ago", days=int(age)) if kind == "job" else Text(
            "a run that failed before it saved anything")
        yield Candidate(job.folder, kind, why, uses[0] if uses else None)


def _unused_models(workspace: Workspace) -> Iterator[Candidate]:
    for folder in sorted(workspace.models.glob("*/")):
        if not folder.name.startswith(".") and folder.name != EMBEDDED_NAME and not folder.is_symlink():
            uses = uses_of(workspace, folder)
            yield Candidate(folder, "model", Text("a model that no run was trained on"), uses[0] if uses else None)


def _unused_datasets(workspace: Workspace) -> Iterator[Candidate]:
    for dataset in list_datasets(workspace):
        uses = uses_of(workspace, dataset.folder)
        yield Candidate(dataset.folder, "dataset", Text("a dataset that no run learned from"), uses[0] if uses else None)
