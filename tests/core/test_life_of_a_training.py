"""The life of a training: it loses its parent, is killed, goes on, is stopped, and goes on to its end. The tiny model, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.data.library import save_dataset
from core.jobs import launch
from core.jobs.folder import JobState
from core.models.header import tensor_shapes
from core.runs import Run
from core.train.create import create_run, describe_resume
from core.words import Text
from core.workspace import CHECKOUT, Workspace
from tests.core.conftest import tiny_recipe, tiny_rows

pytestmark = pytest.mark.slow  # each process loads torch anew

PATIENCE_SECONDS = 100
PARENT = """
import sys, time
from pathlib import Path
from core.jobs.folder import Job
from core.jobs.launch import start_job
start_job(Job(Path(sys.argv[1])))
print("started", flush=True)
time.sleep(600)
"""
UPDATES = 120


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


@dataclass
class Life:
    """What was seen on the way."""

    run: Run
    states: list[str] = field(default_factory=list)
    updates_without_parent: tuple[int, int] = (0, 0)
    killed: JobState | None = None
    folder_after_kill: set[str] = field(default_factory=set)
    stopped: JobState | None = None
    steps_when_stopped: list[int] = field(default_factory=list)
    adapter_when_stopped: dict[str, list[int]] = field(default_factory=dict)
    finished: JobState | None = None


@pytest.fixture(scope="module")
def life(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        workspace = Workspace.open(tmp_path_factory.mktemp("life") / "workspace")
        save_dataset(workspace, "tiny", tiny_rows(), "test")  # no probes: nothing is asked at the snapshots
        seen = Life(create_run(workspace, tiny_recipe(tiny_model, schedule__updates=UPDATES), "life"))
        lose_the_parent(seen)
        kill(seen)
        stop_by_request(seen)
        launch.restart_job(seen.run)
        seen.finished = launch.wait_for_job(seen.run)
        yield seen


def note(seen: Life) -> JobState:
    state = seen.run.state()
    if not seen.states or seen.states[-1] != state.state:
        seen.states.append(state.state)
    return state


def updates_of(run: Run) -> int:
    return len(run.metrics())


def lose_the_parent(seen: Life) -> None:
    """SIGINT to the parent's whole group, as Ctrl-C in its terminal, then KILL; the worker is still loading."""
    note(seen)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(seen.run.folder)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL, start_new_session=True)
    assert parent.stdout.readline() == "started\n"
    os.killpg(parent.pid, signal.SIGINT)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
    until(lambda: note(seen).state != "queued" and updates_of(seen.run) > 0, "the first update")
    before = updates_of(seen.run)
    until(lambda: updates_of(seen.run) > before, "one more update")
    seen.updates_without_parent = (before, updates_of(seen.run))


def kill(seen: Life) -> None:
    until(lambda: any((seen.run.folder / "resume").glob("[0-9]*")), "the first snapshot")
    os.killpg(note(seen).process.pid, signal.SIGKILL)
    until(lambda: not seen.run.has_worker(), "the end of the worker")
    seen.killed = note(seen)
    seen.folder_after_kill = {path.name for path in seen.run.folder.iterdir()}


def stop_by_request(seen: Life) -> None:
    begun_at = describe_resume(seen.run)
    launch.restart_job(seen.run)
    note(seen)
    until(lambda: note(seen).progress.done > begun_at, "an update after the resume")
    seen.stopped = launch.stop_job(seen.run)
    note(seen)
    seen.steps_when_stopped = [checkpoint.step for checkpoint in seen.run.checkpoints()]
    seen.adapter_when_stopped = {name: shape for name, (_, shape) in tensor_shapes(seen.run.checkpoints()[-1].folder).items()}


def test_a_training_outlives_its_parent(life):
    assert life.states[:3] == ["queued", "running", "failed"]
    before, after = life.updates_without_parent
    assert 0 < before < after


def test_a_killed_training_says_so_and_stays_readable(life):
    assert life.killed.state == "failed"
    assert "killed" in str(Text.from_json(life.killed.problem)) and "run resume" in str(Text.from_json(life.killed.hint))
    assert {"recipe.yaml", "dataset.json", "metrics.jsonl", "checkpoints", "events.jsonl", "log.txt"} <= life.folder_after_kill


def test_a_stopped_training_leaves_a_usable_snapshot(life):
    assert life.stopped.state == "stopped" and life.stopped.problem is None
    step = life.stopped.result["updates"]
    assert 0 < step < UPDATES and life.steps_when_stopped[-1] == step
    assert len(life.adapter_when_stopped) == 28 and all(4 in shape for shape in life.adapter_when_stopped.values())


def test_a_resumed_training_ends_as_if_nothing_had_happened(life):
    assert life.finished.state == "finished" and life.finished.result["updates"] == life.finished.result["planned"] == UPDATES
    assert [record["update"] for record in life.run.metrics()] == list(range(1, UPDATES + 1))
    assert life.run.checkpoints()[-1].step == UPDATES
    assert "Traceback" not in life.run.log_tail()
