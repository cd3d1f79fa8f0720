"""The process behind a job: `python -m core.jobs.worker FOLDER`.

Reads `spec.json`, waits for the device, does the work of the spec's kind, and leaves the truth in `state.json` whatever happens.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.classroom.limits import check_disk, check_memory, is_far_over_memory
from core.errors import StudioError
from core.jobs.folder import Job, JobState, Progress
from core.jobs.process import ProcessIdentity
from core.jobs.queue import hold_device
from core.redact import RedactedStream
from core.words import Text
from core.workspace import Workspace, is_full_disk

# kind -> (function that does it, whether it needs the device for itself)
WORK: dict[str, tuple[str, bool]] = {
    "prepare": ("core.models.embedded:prepare_job", False),
    "import": ("core.data.import_job:import_job", False),
    "replay": ("core.data.replay:replay_job", True),
    "train": ("core.train.worker:train_job", True),
    "trial": ("core.train.trial:trial_job", True),
    "judge": ("core.judge.worker:judge_job", True),
    "strengths": ("core.judge.strengths:strengths_job", True),
    "merge": ("core.merge.worker:merge_job", True),
    "ask": ("core.chat.ask:ask_job", True),
    "convert-xtuner": ("core.convert.xtuner_run:convert_job", False),
    "split": ("core.convert.split:split_job", False),
    "add-model": ("core.models.add:add_job", False),
    "publish": ("core.convert.publish_job:publish_job", False),
    "gguf": ("core.convert.gguf_job:gguf_job", False),
    "lesson": ("core.lesson:lesson_job", False),
}
HEARTBEAT_SECONDS = 2.0
PROGRESS_SECONDS = 0.1
# People wait for pages; work that gives way to them is as fast as ever when nobody clicks.
_NICENESS = 10


class Recorder:
    """What a job's work sees of its folder: progress, events, and whether it should stop."""

    def __init__(self, job: Job, state: JobState) -> None:
        self.job = job
        self._state = state
        self._lock = threading.Lock()
        self._stop = False  # no threading.Event: a signal handler that sets one can wait for itself
        self.told_to_stop = False  # whether the work itself has heard of it
        self.reached: StudioError | None = None  # a student's limit
        self._phase_began = time.monotonic()
        self._phase_first_done = 0
        self._written = 0.0

    def update(self, **fields: Any) -> None:
        """Change fields of the state and write it; the heartbeat is renewed with every write."""
        with self._lock:
            self._state = self._state.model_copy(update={**fields, "heartbeat": time.time()})
            self.job.write_state(self._state)

    def progress(self, done: int, total: int, label: Text) -> None:
        """Say how far this part has come; the time left is taken from its own pace so far."""
        plain = label.to_json()
        now = time.monotonic()
        if self._state.progress.label != plain:
            self._phase_began, self._phase_first_done = now, done
        steps = done - self._phase_first_done
        left = (now - self._phase_began) / steps * (total - done) if steps else None
        told = Progress(done=done, total=total, label=plain, seconds_left=left)
        if steps and done < total and now - self._written < PROGRESS_SECONDS:
            with self._lock:  # work of many short steps must not spend its time on writing; the next write, a heartbeat or the end, has it
                self._state = self._state.model_copy(update={"progress": told})
        else:
            self._written = now
            self.update(progress=told)

    def event(self, name: str, **data: Any) -> None:
        self.job.event(name, **data)

    def ask_to_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        """True once somebody asked: the `stop` file, or TERM."""
        if (self.job.folder / "stop").exists():
            self._stop = True
        if self._stop and self._state.state == "running":
            self.update(state="stopping")
        self.told_to_stop = self._stop
        return self.told_to_stop

    def beat_until(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                self.update()
                if self._state.state != "queued":  # which takes next to nothing, and thirty that look all the time take a core
                    self._look_at_limits()
            except (OSError, StudioError) as error:  # a full disk may have room again at the next beat
                note(f"heartbeat: {error}")

    def _look_at_limits(self) -> None:
        """A student's job that takes more than its share is asked to stop; one whose memory goes on growing is killed at once."""
        workspace = Workspace(self.job.folder.parent.parent)
        try:
            check_memory(workspace)
            check_disk(workspace)
        except StudioError as error:
            self.reached = self.reached or error
            self.ask_to_stop()
        if is_far_over_memory(workspace) and self.reached is not None:
            self.last_word(state="failed", ended=time.time(), **self.reached.to_json())
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def last_word(self, **fields: Any) -> None:
        """Write how it ended, even on a full disk."""
        try:
            self.update(**fields)
        except (OSError, StudioError) as error:
            note(f"last word: {error}")
            state = self._state.model_copy(update={**fields, "heartbeat": time.time()})
            # In place of the old words: that needs no new room.
            with (self.job.folder / "state.json").open("r+", encoding="utf-8") as stream:
                stream.write(state.model_dump_json())
                stream.truncate()


def note(text: str) -> None:
    """Write to the log; on a full disk without it."""
    try:
        print(text, flush=True)
    except OSError:
        pass


def run_job(folder: Path) -> int:
    """Do the job in `folder`; returns the exit code of the process."""
    job = Job(folder)
    with (folder / "worker.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another worker has this job already", flush=True)
            return 1
        before = job.state()
        recorder = Recorder(job, JobState(kind=before.kind, device=before.device, created=before.created, asked=before.asked,
                                          process=ProcessIdentity.own()))
        _listen(recorder)
        recorder.last_word()  # its first one, on a full disk too: who says later why it fails must be known to be at work
        ended = threading.Event()
        heart = threading.Thread(target=recorder.beat_until, args=(ended,), daemon=True)
        heart.start()
        try:
            outcome = _work(job, recorder)
        except StudioError as error:
            outcome = {"state": "failed", **error.to_json()}
            note(f"{error.problem}\n{error.hint}")
        except BaseException as error:  # the last word of a process must reach the file
            note(traceback.format_exc())
            outcome = {"state": "failed", **unexpected(error).to_json()}
        ended.set()
        heart.join()
        if recorder.reached is not None:
            outcome = {**outcome, "state": "failed", **recorder.reached.to_json()}
        recorder.last_word(ended=time.time(), **outcome)
        return 1 if outcome["state"] == "failed" else 0


def give_way_to_pages(job: Job) -> None:
    """Lower this process's priority for good, when its work is on the processors; a GPU waits for its process."""
    if not job.state().device.startswith("cuda"):
        os.nice(_NICENESS)


def _listen(recorder: Recorder) -> None:
    """TERM and INT ask to stop; the end of a terminal, HUP, is no reason to."""
    signal.signal(signal.SIGTERM, lambda *_: recorder.ask_to_stop())
    signal.signal(signal.SIGINT, lambda *_: recorder.ask_to_stop())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _work(job: Job, recorder: Recorder) -> dict[str, Any]:
    target, needs_device = WORK[job.spec()["kind"]]
    workspace = Workspace.open(job.folder.parent.parent)
    if not needs_device:
        return _run(target, job, recorder, workspace)
    with hold_device(workspace, job, recorder.stop_requested) as is_ours:
        return _run(target, job, recorder, workspace) if is_ours else {"state": "stopped"}


def _run(target: str, job: Job, recorder: Recorder, workspace: Workspace) -> dict[str, Any]:
    check_disk(workspace)  # it may have been used up while the job waited
    recorder.update(state="running", started=time.time())
    module, function = target.split(":")
    work: Callable[[Workspace, Job, Recorder], dict[str, Any]] = getattr(importlib.import_module(module), function)
    result = work(workspace, job, recorder)
    # A request that came too late for the work to hear it has stopped nothing.
    return {"state": "stopped" if recorder.told_to_stop else "finished", "result": result}


def unexpected(error: BaseException) -> StudioError:
    """Words for an error that nobody foresaw, and for two that arise anywhere: no memory, no room on the disk."""
    if is_full_disk(error):
        return StudioError(
            "The disk is full; {path} was not written.",
            "Free some space (`sweetspot runs` lists runs you may delete) and start again; what was saved before is intact.",
            path=getattr(error, "filename", None) or "-")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return StudioError(
            "There was not enough memory.",
            "Make the length or the micro-batch smaller, choose a smaller model, or close other programs.",
        )
    return StudioError(
        "It ended with an error nobody foresaw: {kind}: {text}",
        "The last lines of its log tell more: {log}.",
        kind=type(error).__name__, text=str(error)[:300] or "-", log="log.txt",
    )


if __name__ == "__main__":
    out = sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    asked = Path(sys.argv[1]).resolve()
    give_way_to_pages(Job(asked))
    status = run_job(asked)
    for stream in out:
        stream.finish()
    sys.exit(status)
