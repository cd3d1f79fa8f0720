"""A job's folder: what was asked (`spec.json`), how it stands (`state.json`), what happened (`events.jsonl`, `log.txt`).

Only the worker writes `state.json` once it runs; everybody else reads. A reader corrects what the file can no longer say: a worker
that was killed left "running" behind, and the reader reports it as failed.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from core.classroom.limits import check_disk
from core.errors import StudioError
from core.jobs.process import ProcessIdentity
from core.jobs.turns import next_turn
from core.redact import redact_data
from core.words import Text
from core.workspace import Workspace, append_jsonl, explain_full_disk, read_json, read_jsonl, write_json, write_text

StateName = Literal["queued", "running", "stopping", "finished", "stopped", "failed"]
ACTIVE: tuple[StateName, ...] = ("queued", "running", "stopping")

# A job that was made is launched within this time, or never.
LAUNCH_GRACE_SECONDS = 30.0

KILLED = Text("The process ended without a word: it was killed, or the machine ran out of memory.")
KILLED_ON_REQUEST = Text("It was asked to stop, did not answer, and was killed.")
KILLED_HINT = Text("Everything saved before is intact. Start it again; a training goes on with `sweetspot run resume`.")


class Progress(BaseModel):
    """How far the present part has come. `seconds_left` is None until it can be told."""

    done: int = 0
    total: int = 0
    label: dict[str, Any] | None = None
    seconds_left: float | None = None


class JobState(BaseModel):
    """What `state.json` holds. Times are seconds since the epoch; texts are `Text.to_json()`.

    `asked` decides who goes first: see `core.jobs.turns`. None in a state from before it was written.
    """

    state: StateName = "queued"
    kind: str
    device: str = "cpu"
    process: ProcessIdentity | None = None
    created: float
    asked: float | None = None
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

    @property
    def turn(self) -> float:
        """Whoever has the smaller one asked earlier."""
        return self.created if self.asked is None else self.asked


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
        """What was asked.

        Raises:
            StudioError: the file is damaged or gone.
        """
        try:
            spec = read_json(self.folder / "spec.json")
            spec["kind"]
            return spec
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StudioError("The folder {folder} no longer says what its job is: spec.json is damaged.",
                              "Save what you need from the folder, then delete it.", folder=self.folder) from error

    def state(self) -> JobState:
        """How the job stands now, corrected when its process is gone."""
        state = self._written_state()
        if not state.is_active or self._is_alive(state):
            return state
        state = self._written_state()  # it may have ended properly between the two looks
        if not state.is_active:
            return state
        problem = KILLED_ON_REQUEST if (self.folder / "stop").exists() else KILLED
        return state.model_copy(update={
            "state": "failed", "problem": problem.to_json(), "hint": KILLED_HINT.to_json(),
            "ended": state.ended or state.heartbeat,
        })

    def _written_state(self) -> JobState:
        try:
            return JobState.model_validate(read_json(self.folder / "state.json"))
        except (OSError, ValueError):
            return self._unreadable()

    def _unreadable(self) -> JobState:
        """What can still be said of a job whose state is damaged, or whose folder was deleted a moment ago."""
        try:
            created, spec = self.folder.stat().st_mtime, self.spec()
        except (OSError, StudioError):
            created, spec = 0.0, {}
        return JobState(state="failed", kind=str(spec.get("kind", "unknown")), device=str(spec.get("device", "cpu")), created=created,
                        problem=Text("The state of this job cannot be read.").to_json(), hint=KILLED_HINT.to_json())

    def process(self) -> ProcessIdentity | None:
        """The job's process: by its own word, else the one that was last launched for it."""
        return self._written_state().process or self._launched()

    def _launched(self) -> ProcessIdentity | None:
        try:
            return ProcessIdentity.model_validate(read_json(self.folder / "launched.json"))
        except (OSError, ValueError):
            return None

    def note_launch(self, process: ProcessIdentity) -> None:
        """Remember the worker just launched, until it speaks for itself in `state.json`."""
        write_json(self.folder / "launched.json", process.model_dump())

    def has_worker(self) -> bool:
        """True while a process works on this job, whatever its state says."""
        return any(process is not None and process.is_alive() for process in (self._written_state().process, self._launched()))

    def _is_alive(self, state: JobState) -> bool:
        process = state.process or self._launched()
        if process is not None:
            return process.is_alive()
        return abs(time.time() - state.created) < LAUNCH_GRACE_SECONDS  # abs: the clock may have been set back

    def write_state(self, state: JobState) -> None:
        told = state.model_dump()
        for name in ("problem", "hint", "result", "progress"):  # what a library said may quote a token
            told[name] = redact_data(told[name])
        write_json(self.folder / "state.json", told)

    def event(self, name: str, **data: Any) -> None:
        append_jsonl(self.folder / "events.jsonl", {"time": time.time(), "event": name, **redact_data(data)})

    def events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "events.jsonl")

    def log_tail(self, lines: int = 200, limit_bytes: int = 64_000) -> str:
        """The last lines of the log; reads at most `limit_bytes` of a log of any size."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - limit_bytes))
            text = stream.read().decode("utf-8", errors="replace")
        # A carriage return begins a line anew: of a progress bar only its last form is left, as in a terminal.
        shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.removesuffix("\n").split("\n")]
        return "\n".join(shown[-lines:])

    def request_stop(self) -> None:
        """Ask politely; the worker ends after its present step.

        Raises:
            StudioError: the workspace must not be written.
        """
        with explain_full_disk(self.folder):
            (self.folder / "stop").touch()


def new_job_id(kind: str, subject: str) -> str:
    """A name that sorts by time and cannot collide: `20261122-151408-train-alex-3f2a`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    plain = re.sub(r"[^a-z0-9._-]+", "-", subject.lower()).replace("..", ".")  # a subject such as ../x stays inside the folder
    return "-".join(part for part in (stamp, kind, plain, uuid.uuid4().hex[:4]) if part)


def create_job(folder: Path, kind: str, spec: dict[str, Any], device: str = "cpu", files: dict[str, str] | None = None) -> Job:
    """Make the folder of a job that is not started yet; it is a job from the moment its `spec.json` is there, which comes last.

    Args:
        folder: where.
        kind: of work.
        spec: what is asked.
        device: that it needs.
        files: other files that its work reads: name -> text.

    Raises:
        StudioError: a job of this name exists, or a student's share of the disk is used up.
    """
    check_disk(Workspace(folder.parent.parent))
    try:
        with explain_full_disk(folder):
            folder.mkdir(parents=True)
    except FileExistsError as error:
        raise StudioError("A job called {name} exists already.", "Choose another name, or delete the old one first.",
                          name=folder.name) from error
    try:
        job = Job(folder)
        for name, text in (files or {}).items():
            write_text(folder / name, text)
        job.write_state(JobState(kind=kind, device=device, created=time.time(), asked=next_turn(Workspace(folder.parent.parent))))
        write_json(folder / "spec.json", {"kind": kind, "device": device, **spec})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return job


def list_jobs(workspace: Workspace) -> list[Job]:
    """Every job of the workspace, trainings included, oldest first."""
    folders = [*workspace.jobs.iterdir(), *workspace.runs.iterdir()]
    jobs = [Job(folder) for folder in folders if (folder / "spec.json").exists()]
    return sorted(jobs, key=lambda job: job.id)
