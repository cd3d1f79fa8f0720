"""What one may do with a run that exists: stop it, throw it away, go on with it, delete it."""

from __future__ import annotations

import time

from core.errors import StudioError
from core.housekeeping.room import freed_bytes
from core.housekeeping.trash import throw_away
from core.housekeeping.uses import refuse_use
from core.jobs.folder import Job
from core.jobs.launch import restart_job, stop_job
from core.jobs.once import one_at_a_time
from core.recipe.files import change_recipe
from core.runs import Run
from core.train.devices import choose_devices
from core.workspace import Workspace, write_json

# A training that shall be thrown away has nothing to save: it gets little time to end by itself.
_DISCARD_GRACE_SECONDS = 3.0
_EXIT_SECONDS = 3.0


def resume_run(workspace: Workspace, run: Run, gpus: str | int | list[int] | None = None) -> None:
    """Go on with a run that was stopped or failed, after its last saved step.

    Args:
        workspace: where it is.
        run: which.
        gpus: as `device.gpus` of a recipe, where it shall go on with others than before.

    Raises:
        StudioError: it is at work, it has nothing left to do, or there are no such GPUs.
    """
    with one_at_a_time(workspace, "train"):
        state = run.state()
        if state.is_active:
            raise StudioError("The run {run} is still running.", "Follow it with `sweetspot run follow {run}`.", run=run.id)
        if state.state == "finished":
            raise StudioError("The run {run} has finished; there is nothing to go on with.", "Start a new run with more updates.",
                              run=run.id)
        if gpus is not None:
            devices = choose_devices(change_recipe(run.recipe(), {"device.gpus": gpus}, "--gpus"))
            spec = {key: value for key, value in run.spec().items() if key not in ("fit", "nodes")}
            write_json(run.folder / "spec.json", {**spec, **devices.to_spec()})
            run.write_state(state.model_copy(update={"device": devices.name}))
        restart_job(run)


def discard_run(run: Run) -> int:
    """Stop a run and move it to the trash with all it saved; returns the bytes that come back when that is emptied.

    Raises:
        StudioError: its process did not end.
    """
    if run.state().is_active:
        stop_job(run, _DISCARD_GRACE_SECONDS)
    return delete_run(run)


def delete_run(run: Run) -> int:
    """Move a run that has ended to the trash, with all its checkpoints; returns the bytes that come back when the trash is emptied.

    Raises:
        StudioError: it is at work, or something that is at work or the chat needs it.
    """
    if not _has_left(run):
        raise StudioError("The run {run} is still running.", "Stop it first with `sweetspot run stop {run}`.", run=run.id)
    workspace = Workspace(run.folder.parent.parent)
    with one_at_a_time(workspace, "housekeeping"):
        refuse_use(workspace, run.folder)
        size = freed_bytes([run.folder])
        throw_away(workspace, run.folder)
    return size


def _has_left(job: Job) -> bool:
    """Whether the job has ended and its process is gone; it says that it has ended a moment before it goes."""
    deadline = time.monotonic() + _EXIT_SECONDS
    while True:
        state = job.state()
        if state.is_active:
            return False
        if state.process is None or not state.process.is_alive():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def folder_bytes(job: Job) -> int:
    """What comes back on the disk when the job's folder goes."""
    return freed_bytes([job.folder])
