"""Preparing the embedded model as a job, once, however often it is asked for."""

from __future__ import annotations

from core.jobs.active import active_jobs
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.jobs.once import one_at_a_time
from core.workspace import Workspace


def prepare_once(workspace: Workspace) -> Job:
    """Start the job, or give the one that is at it."""
    with one_at_a_time(workspace, "prepare"):
        for job, state in active_jobs(workspace):
            if state.kind == "prepare":
                return job
        job = create_job(workspace.jobs / new_job_id("prepare", "embedded"), "prepare", {})
        start_job(job)
        return job
