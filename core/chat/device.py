"""Which jobs need a device for themselves now; chatting gives way to them. No torch."""

from __future__ import annotations

from core.classroom.place import class_root
from core.classroom.room import Classroom
from core.jobs.active import active_jobs
from core.jobs.folder import Job, JobState
from core.jobs.worker import WORK
from core.workspace import Workspace


def jobs_at_device(workspace: Workspace, device: str = "") -> list[tuple[Job, JobState]]:
    """Trainings and other jobs that hold a device, or wait for one, oldest first.

    Args:
        device: only those whose device begins like this: `cuda`, `cpu`; all when empty.
    """
    root = class_root(workspace)  # the devices are everybody's
    places = [workspace] if root is None else [place for _, place in Classroom(Workspace(root)).members()]
    return [(job, state) for place in places if place.jobs.is_dir() for job, state in active_jobs(place)
            if WORK.get(state.kind, ("", False))[1] and state.device.startswith(device)]
