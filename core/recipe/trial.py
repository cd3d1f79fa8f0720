"""The trial: a few updates on the device itself, so that memory and time are measured before a long run. No torch here.

A trial holds for every recipe that does the same work per update: length of the run, learning rate and seed do not matter to it. Its
result is kept in the workspace's cache, by a fingerprint of what does matter.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.jobs.once import one_at_a_time
from core.machine import read_gpus
from core.recipe.files import dump_recipe
from core.recipe.plan import Plan
from core.recipe.schema import Recipe
from core.train.devices import choose_devices
from core.train.looks import SHARE
from core.workspace import Workspace, read_json, write_json

# A run of this length deserves to be measured first; a trial takes a minute or less.
LONG_SECONDS = 600.0


@dataclass(frozen=True)
class Measured:
    """What a trial measured. Seconds and bytes.

    Attributes:
        memory_bytes: peak over three updates on the longest rows.
        seconds_per_token: of an update on the recipe's own rows, once warm.
        startup_seconds: until the first update.
        warmup_seconds: what the first update takes longer than the others.
        snapshot_seconds: to save one.
        look_seconds: to ask the watched probes; 0 without probes.
        tokens: that were read while the time was taken.
        job: id of the trial.
    """

    memory_bytes: int
    seconds_per_token: float
    startup_seconds: float
    warmup_seconds: float
    snapshot_seconds: float
    look_seconds: float
    tokens: int
    job: str

    def seconds(self, tokens: float, plan: Plan) -> float:
        """Of a whole training of `tokens` tokens, from the start of its job to its end."""
        return (self.startup_seconds + self.warmup_seconds + tokens * self.seconds_per_token
                + len(plan.snapshot_steps) * self.snapshot_seconds
                + min(plan.looks * self.look_seconds, SHARE * tokens * self.seconds_per_token))


def fingerprint(workspace: Workspace, recipe: Recipe) -> str:
    """What a trial's result holds for.

    Raises:
        StudioError: a dataset is missing.
    """
    schedule = recipe.schedule
    gpus = [] if recipe.device.kind == "cpu" else read_gpus()
    rows = [load_dataset(workspace, source.dataset).card.sha256 for source in recipe.data.sources]
    kind = [recipe.model.model_dump(), recipe.method.model_dump(), recipe.data.model_dump(), rows, schedule.effective_batch,
            recipe.device.model_dump(), gpus[0].name if gpus else "cpu"]
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:20]


def read_trial(workspace: Workspace, recipe: Recipe) -> Measured | None:
    """The newest result that holds for this recipe."""
    try:
        return Measured(**read_json(_path(workspace, fingerprint(workspace, recipe))))
    except (OSError, ValueError, TypeError, StudioError):
        return None


def keep_trial(workspace: Workspace, recipe: Recipe, measured: Measured) -> None:
    path = _path(workspace, fingerprint(workspace, recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(measured))


def _path(workspace: Workspace, key: str) -> Path:
    return workspace.cache / "trials" / f"{key}.json"


def start_trial(workspace: Workspace, recipe: Recipe) -> Job:
    """Start measuring this recipe, or give the job that is doing it.

    Raises:
        StudioError: a dataset is missing, or this machine has not the devices that the recipe asks for.
    """
    with one_at_a_time(workspace, "trial"):
        running = active_trial(workspace, recipe)
        if running is not None:
            return running
        job = create_job(workspace.jobs / new_job_id("trial", recipe.data.sources[0].dataset), "trial",
                         {"fingerprint": fingerprint(workspace, recipe)}, choose_devices(recipe).name,
                         {"recipe.yaml": dump_recipe(recipe)})
        start_job(job)
        return job


def active_trial(workspace: Workspace, recipe: Recipe) -> Job | None:
    """The trial of such a recipe that waits or runs."""
    trials = [job for job, state in active_jobs(workspace) if state.kind == "trial"]
    if not trials:
        return None
    key = fingerprint(workspace, recipe)
    return next((job for job in trials if job.spec().get("fingerprint") == key), None)
