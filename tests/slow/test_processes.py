"""A training in several processes as a job: it ends as one process would, and when a rank dies, all end and it can go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from core.errors import StudioError
from core.jobs.launch import start_job, stop_job, wait_for_job
from core.recipe.files import save_recipe
from core.runs import Run, list_runs
from core.train.create import create_run, describe_resume
from core.train.steer import resume_run
from core.workspace import CHECKOUT, Workspace, read_json
from tests.core.conftest import save_tiny_dataset, tiny_recipe, train_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
UPDATES = 40


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def alone(workspace, tiny_model) -> Run:
    """The same training in one process."""
    save_tiny_dataset(workspace)
    return train_here(workspace, shared_recipe(tiny_model), "alone")


def shared_recipe(tiny_model: Path, **changes):
    return tiny_recipe(tiny_model, schedule__updates=UPDATES, snapshots__count=8, schedule__learning_rate=1e-3, **changes)


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics()]


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def ranks_of(run: Run) -> list[psutil.Process]:
    pids = [read_json(path)["pid"] for path in sorted((run.folder / "ranks").glob("process-*.json"))]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize("zero", [2, 3])
def test_a_rank_that_dies_ends_all_and_another_number_goes_on(workspace, tiny_model, alone, zero):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = create_run(workspace, shared_recipe(tiny_model, device__zero=zero, device__gpus=2), f"zero-{zero}")
    start_job(run)
    until(lambda: describe_resume(run) >= 5, "the first snapshot")
    first, second = ranks_of(run)
    second.send_signal(signal.SIGKILL)
    with pytest.raises(StudioError, match=r"Process 1 of 2 was killed \(SIGKILL\)") as caught:
        wait_for_job(run)
    assert "run resume" in str(caught.value.hint) and "--gpus" in str(caught.value.hint)
    until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE, "the end of the other rank")
    step = describe_resume(run)
    assert 5 <= step < UPDATES
    resume_run(workspace, run, gpus=3 if zero == 2 else 1)
    result = wait_for_job(run).result
    assert result["updates"] == result["planned"] == UPDATES
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    folder = run.checkpoints()[-1].folder
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.checkpoints()[-1].folder.iterdir()}
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)


def test_no_rank_outlives_its_job_and_a_stop_saves(workspace, tiny_model):
    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, schedule__updates=6000, snapshots__count=200, device__gpus=2)  # not done before it is stopped
    run = create_run(workspace, recipe, "stopped")
    start_job(run)
    until(lambda: describe_resume(run) > 0, "the first snapshot")
    ranks = ranks_of(run)
    os.kill(run.process().pid, signal.SIGKILL)
    until(lambda: not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks), "the end of the ranks")
    until(lambda: run.state().state == "failed", "its state to say so")
    before = describe_resume(run)
    resume_run(workspace, run)
    until(lambda: describe_resume(run) > before, "a snapshot of the second attempt")
    state = stop_job(run)
    assert state.state == "stopped" and run.checkpoints()[-1].step == state.result["updates"] == describe_resume(run)


def test_two_machines_share_a_training(workspace, tiny_model, alone):
    """Two agents on this machine stand for two machines."""
    save_recipe(workspace, "shared", shared_recipe(tiny_model))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "studio.cli", "train", "shared", "--name", "two", "--nodes", "2", "--host", address, "--json"]
    machines = [subprocess.Popen([*command, "--rank", str(rank)], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"}) for rank in (0, 1)]
    said = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    run = list_runs(Workspace.open(workspace.root))[0]
    assert run.state().state == "finished" and len(list((run.folder / "ranks").glob("process-*.json"))) == 2
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
