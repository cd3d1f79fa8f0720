"""Which jobs are at work now; cheap enough to ask every two seconds with hundreds of ended ones on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from core.jobs.folder import Job, JobState
from core.workspace import Workspace

# Job folder -> change time of its state.json when that said that the job had ended. A restart writes it anew, so this needs no forgetting.
_ended: dict[str, int] = {}


def active_jobs(workspace: Workspace) -> list[tuple[Job, JobState]]:
    """Jobs that wait, run or stop, trainings included, oldest first."""
    found = []
    for parent in (workspace.jobs, workspace.runs):
        with os.scandir(parent) as entries:
            for entry in entries:
                state = _active_state(entry.path)
                if state is not None:
                    found.append((Job(Path(entry.path)), state))
    return sorted(found, key=lambda pair: pair[0].id)


def _active_state(folder: str) -> JobState | None:
    try:
        changed = os.stat(f"{folder}/state.json").st_mtime_ns  # noqa: PTH116 - a Path would cost more than the look itself
    except OSError:
        return None  # a folder being made or deleted, or no job
    if _ended.get(folder) == changed:
        return None
    job = Job(Path(folder))
    if not (job.folder / "spec.json").exists():
        return None
    state = job.state()
    if state.is_active:
        return state
    _ended[folder] = changed
    return None


def newest_job(workspace: Workspace, kind: str, **facts: Any) -> Job | None:
    """The newest job of a kind whose spec says `facts`, as in `newest_job(workspace, "judge", run=run.id)`."""
    folders = sorted(workspace.jobs.glob(f"*-{kind}-*"), reverse=True)  # the name begins with its time: see new_job_id
    for folder in folders:
        if (folder / "spec.json").exists():
            spec = Job(folder).spec()
            if spec["kind"] == kind and facts.items() <= spec.items():
                return Job(folder)
    return None
