"""A training that dies at any file operation whatever, saving included, goes on to the very numbers of one that never died."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from core.data.library import save_dataset
from core.housekeeping.archive_reading import import_archive
from core.housekeeping.archive_writing import export_run
from core.jobs.folder import JobState
from core.jobs.launch import restart_job, start_job, wait_for_job
from core.runs import Run, find_run
from core.train.create import create_run, describe_resume
from core.workspace import Workspace
from tests.core.conftest import save_tiny_dataset, tiny_recipe, tiny_rows

DEATHS = 9
FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Silent:
    """A recorder for a training without a job."""

    def progress(self, *_: object) -> None: ...
    def event(self, *_: object, **__: object) -> None: ...
    def stop_requested(self) -> bool:
        return False


def train_in_a_fork(workspace: Workspace, run: Run, dies_at: int | None = None) -> int:
    """Train in a forked process that ends, as by SIGKILL, at its file operation number `dies_at`; returns how many there were, or -9."""
    import torch

    from core.train.worker import Training  # here and not in the fork: importing takes seconds

    counted = run.folder / "counted"
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            is_ours = event in FILE_EVENTS and str(run.folder) in str(arguments[0])
            seen += is_ours
            if is_ours and seen == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            torch.set_num_threads(1)
            sys.addaudithook(count)
            Training(workspace, run, Silent()).run_to_end()
            total = seen
            counted.write_text(str(total))
            os._exit(0)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return int(counted.read_text())


def digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "adapter_model.safetensors").read_bytes()).hexdigest()


def what_is_left(run: Run) -> tuple[list, list, dict[str, str]]:
    losses = [(record["update"], record["loss"], record["gradient_norm"]) for record in run.metrics()]
    adapters = {checkpoint.folder.name: digest(checkpoint.folder) for checkpoint in run.checkpoints()}
    return losses, sorted(path.name for path in (run.folder / "resume").iterdir()), adapters


def test_death_at_any_file_operation_changes_nothing(workspace, tiny_model, record_property):
    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, method__dropout=0.1)  # chance takes part
    whole = create_run(workspace, recipe, "whole")
    operations = train_in_a_fork(workspace, whole)
    expected = what_is_left(whole)
    assert operations > 50 and [update for update, *_ in expected[0]] == [1, 2, 3, 4, 5, 6]
    assert expected[1] == ["000004", "000006"] and list(expected[2]) == ["000002", "000004", "000006"], "two states, every adapter"
    points = random.Random(11).sample(range(1, operations + 1), DEATHS)
    run = create_run(workspace, recipe, "killed")
    for dies_at in points[:3]:  # one run that dies again and again
        assert train_in_a_fork(workspace, run, dies_at) in (-signal.SIGKILL, *range(operations))
    train_in_a_fork(workspace, run)
    assert what_is_left(run) == expected
    for dies_at in points[3:]:
        run = create_run(workspace, recipe, f"killed-at-{dies_at}")
        assert train_in_a_fork(workspace, run, dies_at) == -signal.SIGKILL
        train_in_a_fork(workspace, run)
        assert what_is_left(run) == expected, f"died at file operation {dies_at} of {operations}"
    record_property("injections", DEATHS)
    record_property("figure", f"all {len(expected[0])} losses and {len(expected[2])} adapters equal")


def test_a_killed_run_that_has_moved_goes_on_to_the_same_numbers(workspace, tiny_model, tmp_path, record_property):
    """Exported with its base, imported into a workspace where its dataset's name is taken, and gone on with there."""
    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, method__dropout=0.1)
    whole, run = (create_run(workspace, recipe, name) for name in ("whole", "killed"))
    operations = train_in_a_fork(workspace, whole)
    expected = what_is_left(whole)
    assert train_in_a_fork(workspace, run, int(operations * 0.75)) == -signal.SIGKILL
    gone_on_from = describe_resume(run)
    assert 0 < gone_on_from < 6
    run.write_state(JobState(kind="train", state="failed", created=1.0))  # as its worker would have left it
    export_run(workspace, run, tmp_path / "run.tar.gz", with_base=True)
    other = Workspace.open(tmp_path / "elsewhere")
    save_dataset(other, "tiny", [{"messages": tiny_rows()[0]["messages"], "group": "identity", "lang": "en"}], "test")
    import_archive(other, tmp_path / "run.tar.gz")
    shutil.rmtree(workspace.runs)  # nothing of the old place is needed
    moved = find_run(other, "killed")
    assert moved.recipe().data.sources[0].dataset != "tiny" and describe_resume(moved) == gone_on_from
    train_in_a_fork(other, moved)
    assert what_is_left(moved) == expected
    record_property("figure", f"{gone_on_from} of 6 updates travelled; all {len(expected[0])} losses equal")
    record_property("injections", 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_killed_again_and_again_at_random_moments(workspace, tiny_model):
    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, schedule__updates=60, snapshots__count=30, schedule__learning_rate=1e-3)
    whole = create_run(workspace, recipe, "whole")
    start_job(whole)
    wait_for_job(whole)
    run, chance = create_run(workspace, recipe, "killed"), random.Random(5)
    start_job(run)
    for _ in range(6):
        begun = describe_resume(run)
        while describe_resume(run) < begun + 4 and run.state().is_active:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process = run.process()
        if process is not None and process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        while run.has_worker():
            time.sleep(0.02)
        if run.state().state == "failed":
            restart_job(run)
    wait_for_job(run)
    assert what_is_left(run) == what_is_left(whole)
    assert describe_resume(run) == 60 and Path(run.folder / "checkpoints").is_dir()
