"""A job's folder: what was asked (`spec.json`), how it stands (`state.json`), what happened (`events.jsonl`, `log.txt`).

Only the worker writes `state.json` once it runs; everybody else reads. A reader corrects what the file can no longer say: a worker
that was killed left "running" behind, and the reader reports it as failed.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from core.errors import StudioError
from core.jobs.process import ProcessIdentity
from core.words import Text
from core.workspace import Workspace, append_jsonl, read_json, read_jsonl, write_json

StateName = Literal["queued", "running", "stopping", "finished", "stopped", "failed"]
ACTIVE: tuple[StateName, ...] = ("queued", "running", "stopping")

# A worker needs this long at most from its launch to its first own word in `state.json`.
LAUNCH_GRACE_SECONDS = 30.0

KILLED = Text("The process ended without a word: it was killed, or the machine ran out of memory.")
KILLED_HINT = Text("Everything saved before is intact. Start it again; a training goes on with `sweetspot run resume`.")


class Progress(BaseModel):
    """How far the present part has come. `seconds_left` is None until it can be told."""

    done: int = 0
    total: int = 0
    label: dict[str, Any] | None = None
    seconds_left: float | None = None


class JobState(BaseModel):
    """What `state.json` holds. Times are seconds since the epoch; texts are `Text.to_json()`."""

    state: StateName = "queued"
    kind: str
    device: str = "cpu"
    process: ProcessIdentity | None = None
    created: float
    started: float | None = None
    ended: float | None = None
    heartbeat: float | None = None
    progress: Progress = Progress()
    problem: dict[str, Any] | None = None
    hint: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True)
class Job:
    """One job folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def spec(self) -> dict[str, Any]:
        return read_json(self.folder / "spec.json")

    def state(self) -> JobState:
        """How the job stands now, corrected when its process is gone."""
        state = self._written_state()
        if not state.is_active or self._is_alive(state):
            return state
        state = self._written_state()  # it may have ended properly between the two looks
        if not state.is_active:
            return state
        return state.model_copy(update={
            "state": "failed", "problem": KILLED.to_json(), "hint": KILLED_HINT.to_json(),
            "ended": state.ended or state.heartbeat,
        })

    def _written_state(self) -> JobState:
        try:
            return JobState.model_validate(read_json(self.folder / "state.json"))
        except (OSError, ValueError):
            created = self.folder.stat().st_mtime
            return JobState(state="failed", kind="unknown", created=created,
                            problem=Text("The state of this job cannot be read.").to_json(), hint=KILLED_HINT.to_json())

    def _is_alive(self, state: JobState) -> bool:
        if state.process is None:
            return time.time() - state.created < LAUNCH_GRACE_SECONDS
        return state.process.is_alive()

    def write_state(self, state: JobState) -> None:
        write_json(self.folder / "state.json", state.model_dump())

    def event(self, name: str, **data: Any) -> None:
        append_jsonl(self.folder / "events.jsonl", {"time": time.time(), "event": name, **data})

    def events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "events.jsonl")

    def log_tail(self, lines: int = 200, limit_bytes: int = 64_000) -> str:
        """The last lines of the log; reads at most `limit_bytes` of a log of any size."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as stream:
            stream.seek(max(0, os.path.getsize(self.log) - limit_bytes))
            text = stream.read().decode("utf-8", errors="replace")
        return "\n".join(line.rsplit("\r", 1)[-1] for line in text.splitlines()[-lines:])

    def request_stop(self) -> None:
        """Ask politely; the worker ends after its present step."""
        (self.folder / "stop").touch()


def new_job_id(kind: str, subject: str) -> str:
    """A name that sorts by time and cannot collide: `20261122-151408-train-alex-3f2a`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return "-".join(part for part in (stamp, kind, subject, uuid.uuid4().hex[:4]) if part)


def create_job(folder: Path, kind: str, spec: dict[str, Any], device: str = "cpu") -> Job:
    """Make the folder of a job that is not started yet.

    Raises:
        StudioError: a job of this name exists.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise StudioError("A job called {name} exists already.", "Choose another name, or delete the old one first.",
                          name=folder.name) from error
    try:
        job = Job(folder)
        write_json(folder / "spec.json", {"kind": kind, **spec})
        job.write_state(JobState(kind=kind, device=device, created=time.time()))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return job


def list_jobs(workspace: Workspace) -> list[Job]:
    """Every job of the workspace, trainings included, oldest first."""
    folders = [*workspace.jobs.iterdir(), *workspace.runs.iterdir()]
    jobs = [Job(folder) for folder in folders if (folder / "spec.json").exists()]
    return sorted(jobs, key=lambda job: job.id)
