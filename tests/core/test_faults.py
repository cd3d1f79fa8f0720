"""Faults made for real: a full or read-only file system, a clock set back, process numbers and files that are not what they were."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.data.import_job import keep_upload
from core.data.library import list_datasets, save_dataset, update_rows
from core.data.persona import Persona
from core.errors import StudioError
from core.housekeeping.archive_reading import import_archive
from core.housekeeping.archive_writing import export_run
from core.housekeeping.trash import throw_away
from core.jobs import folder as folder_module
from core.jobs import studio as studio_module
from core.jobs.active import active_jobs
from core.jobs.folder import Job, JobState, Progress, create_job, list_jobs
from core.jobs.process import ProcessIdentity
from core.jobs.queue import waiting_before
from core.jobs.studio import hold_workspace
from core.jobs.worker import Recorder, run_job
from core.lesson import start_lesson
from core.recipe.files import save_recipe
from core.runs import Run, list_runs
from core.train.create import create_run
from core.words import Text
from core.workspace import CHECKOUT, Workspace, append_jsonl, fill_folder, read_jsonl, read_only, write_json, write_text
from tests.core.conftest import save_tiny_dataset, tiny_recipe, tiny_rows

Fill = Callable[[], None]


@pytest.fixture
def small(tmp_path) -> Iterator[tuple[Workspace, Fill]]:
    """A workspace on a file system of 3 MB of its own, and what fills that to the last block."""
    root = tmp_path / "small"
    root.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(root)], capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("only root may mount a small file system")

    def fill() -> None:
        with (root / "filler").open("ab", buffering=0) as stream:
            try:
                while True:
                    stream.write(b"x" * 4096)
            except OSError:
                pass

    try:
        yield Workspace.open(root / "workspace"), fill
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def listing(workspace: Workspace) -> dict[str, bytes]:
    """Every file that is not a lock, with its contents."""
    return {str(path.relative_to(workspace.root)): path.read_bytes() for path in sorted(workspace.root.rglob("*"))
            if path.is_file() and path.suffix not in (".once", ".lock")}


def test_a_full_disk_in_every_writer_is_a_sentence_and_leaves_all_as_it_was(small, tiny_model, tmp_path, monkeypatch):
    import torch

    from core.data.importing import Importing, Reading, import_rows
    from core.train.batches import Fit
    from core.train.snapshots import save_resume_state

    workspace, fill = small
    monkeypatch.setattr("core.train.create.check_disk", lambda *_: None)  # it would refuse before anything is written
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "before")
    run.write_state(JobState(kind="train", state="stopped", created=time.time()))
    write_json(run.folder / "verdict.json", {"old": True})
    append_jsonl(run.folder / "answers.jsonl", {"step": 0})
    export_run(workspace, run, tmp_path / "run.tar")
    many = [dict(row) for row in tiny_rows()] * 2000
    (tmp_path / "rows.jsonl").write_text((workspace.datasets / "tiny/rows.jsonl").read_text() * 2000)
    card = list_datasets(workspace)[0].card
    (workspace.root.parent / "filler").touch()
    fill()
    before = listing(workspace)
    tensors = [("layer.weight", torch.zeros(200_000))]
    writers: dict[str, Callable[[], object]] = {
        "write_text": lambda: write_text(run.folder / "verdict.json", "x" * 9000),
        "append": lambda: append_jsonl(run.folder / "answers.jsonl", {"text": "x" * 9000}),
        "new dataset": lambda: save_dataset(workspace, "new", many, "test"),
        "rows": lambda: update_rows(workspace, "tiny", many, card.sha256),
        "import": lambda: import_rows(workspace, "imported", Importing.of_file(str(tmp_path / "rows.jsonl"), Reading(), None), Reading(),
                                      lambda *_: True, tmp_path / "rejected"),
        "upload": lambda: keep_upload(workspace, io.BytesIO(b"x" * 300_000), "rows.jsonl"),
        "run": lambda: create_run(workspace, tiny_recipe(tiny_model), "new"),
        "job": lambda: create_job(workspace.jobs / "new", "judge", {"text": "x" * 9000}),
        "lesson": lambda: start_lesson(workspace, Persona(name="Alex")),
        "recipe": lambda: save_recipe(workspace, "new", tiny_recipe(tiny_model)),
        "resume state": lambda: save_resume_state(run.folder, 2, tensors, Fit(64)),
        "merge": lambda: merge_here(workspace, tiny_model),
        "export": lambda: export_run(workspace, run, workspace.root / "export.tar"),
        "archive": lambda: import_archive(workspace, tmp_path / "run.tar", most_bytes=10**9),
    }
    for name, write in writers.items():
        fill()  # what a writer gave back shall not help the next
        with pytest.raises(StudioError) as caught:
            write()
        assert "disk" in str(caught.value) or "room" in str(caught.value), f"{name}: {caught.value}"
        after = listing(workspace)
        for path in list(after):  # an append may leave half a line, which no reader sees
            if path.endswith("answers.jsonl"):
                assert read_jsonl(workspace.root / path) == [{"step": 0}]
                after[path] = before[path]
        assert after == before, f"{name} left {[path for path in after if after.get(path) != before.get(path)]}"
    assert [one.id for one in list_runs(workspace)] == [run.id] and len(list_jobs(workspace)) == 1 and len(list_datasets(workspace)) == 1
    throw_away(workspace, run.folder)  # a rename needs no room
    assert list_runs(workspace) == []


def merge_here(workspace: Workspace, tiny_model: Path) -> None:
    """A model's shards, as a merge writes them, in the folder that would become the model."""
    from safetensors.torch import save_file
    from torch import zeros

    with fill_folder(workspace.models / "merged") as folder:
        shutil.copyfile(tiny_model / "config.json", folder / "config.json")
        save_file({"layer.weight": zeros(400_000)}, folder / "model.safetensors")


def test_a_worker_on_a_full_disk_has_its_last_word(small, monkeypatch):
    workspace, fill = small
    job = create_job(workspace.jobs / "full", "prepare", {})
    recorder = Recorder(job, JobState(kind="prepare", state="running", created=1.0, process=ProcessIdentity.own()))
    recorder.update(progress=Progress(done=1, total=2, label=Text("training").to_json()))
    fill()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    recorder.last_word(state="failed", ended=2.0, problem=Text("The disk is full; {path} was not written.", path="x").to_json())
    monkeypatch.undo()
    assert job.state().state == "failed" and "disk is full" in str(Text.from_json(job.state().problem or {}))


def test_a_limit_of_file_size_is_an_error_in_words_too(tmp_path):
    """Where nothing can be mounted, the system's limit of a file's size stands for a full disk: half files go, the old ones stay."""
    program = ("import resource, signal, sys; from pathlib import Path; from core.workspace import fill_folder, write_text\n"
               "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
               "root = Path(sys.argv[1])\n"
               "for write in (lambda: write_text(root / 'old', 'x' * 9000),):\n"
               "    try: write(); print('written')\n"
               "    except OSError as error: print(error.errno)\n"
               "try:\n"
               "    with fill_folder(root / 'new') as folder: write_text(folder / 'x', 'x' * 9000)\n"
               "except OSError as error: print(error.errno)\n")
    (tmp_path / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", "27"] and resource.RLIMIT_FSIZE is not None
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


def test_a_workspace_that_must_not_be_written_can_be_read(tmp_path, tiny_model):
    workspace = Workspace.open(tmp_path / "workspace")
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "old")
    run.write_state(JobState(kind="train", state="stopped", created=1.0))
    root = str(workspace.root)
    bound = os.geteuid() == 0 and all(
        subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
        for arguments in (["--bind", root, root], ["-o", "remount,ro,bind", root]))
    if not bound:
        pytest.skip("only root may mount a folder so that it cannot be written")
    try:
        place = Workspace.open(workspace.root)
        assert [one.state().state for one in list_runs(place)] == ["stopped"] and len(list_datasets(place)) == 1
        assert active_jobs(place) == [] and "cannot be written" in str(hold_workspace(place)) and place.root not in read_only
        for write in (lambda: create_run(place, tiny_recipe(tiny_model), "new"), lambda: save_dataset(place, "x", tiny_rows(), "t"),
                      lambda: run.request_stop(), lambda: throw_away(place, run.folder), lambda: append_jsonl(run.folder / "x.jsonl", 1)):
            with pytest.raises(StudioError, match="cannot be written"):
                write()
        done = subprocess.run([sys.executable, "-m", "studio.cli", "run", "delete", "old", "--yes", "--workspace", str(place.root)],
                              cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(workspace.root)], check=True)


def test_a_clock_set_back_changes_no_state_no_order_and_no_time_left(workspace, monkeypatch):
    day, real = 86_400.0, time.time
    first = create_job(workspace.jobs / "20260101-000001-a", "judge", {})
    monkeypatch.setattr(folder_module.time, "time", lambda: real() - day)
    second = create_job(workspace.jobs / "20251231-000001-b", "judge", {})
    for job in (first, second):
        job.note_launch(ProcessIdentity.own())
    assert {job.state().state for job in (first, second)} == {"queued"}
    before = {job.id: [other.id for other in waiting_before(workspace, job)] for job in (first, second)}
    assert sorted(map(len, before.values())) == [0, 1], "one goes before the other, never both or none"
    recorder = Recorder(first, first.state().model_copy(update={"state": "running", "process": ProcessIdentity.own()}))
    recorder.progress(0, 10, Text("training"))
    monkeypatch.setattr(folder_module.time, "time", lambda: real() - 2 * day)
    recorder.progress(5, 10, Text("training"))
    left = first.state().progress.seconds_left
    assert first.state().state == "running" and (left is None or 0 <= left < 60)


def test_a_number_used_again_is_a_stranger(workspace):
    job = create_job(workspace.jobs / "old", "judge", {})
    own = ProcessIdentity.own()
    for stranger in (own.model_copy(update={"started": own.started - 5}), own.model_copy(update={"boot": "another"})):
        job.write_state(JobState(kind="judge", state="running", created=1.0, process=stranger))
        assert job.state().state == "failed" and not job.has_worker() and active_jobs(workspace) == []
    job.write_state(JobState(kind="judge", state="running", created=1.0, process=own))
    assert job.state().state == "running"


def test_a_state_file_cut_off_anywhere_harms_nobody_else(workspace):
    good = create_job(workspace.jobs / "good", "judge", {})
    good.write_state(JobState(kind="judge", state="finished", created=1.0))
    job = create_job(workspace.jobs / "cut", "judge", {})
    whole = (job.folder / "state.json").read_bytes()
    for length in range(0, len(whole) - 2, 7):
        (job.folder / "state.json").write_bytes(whole[:length])
        assert [one.state().state for one in list_jobs(workspace)] == ["failed", "finished"]
    with (good.folder / "events.jsonl").open("ab") as stream:
        stream.write(b'{"time": 1, "event": "snap')
    good.event("end")
    assert [event["event"] for event in good.events()] == ["end"]


def test_of_a_log_of_two_gigabytes_only_the_end_is_read(workspace):
    job = create_job(workspace.jobs / "long", "judge", {})
    with job.log.open("wb") as stream:
        stream.truncate(2 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nthe last line\n")
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    assert job.log_tail(1) == "the last line"
    assert psutil.Process().memory_info().rss - before < 8 << 20 and time.monotonic() - began < 2
    assert psutil.Process().memory_info().rss < 8 << 30 and len(job.log_tail(10**9)) <= 64_000


def test_twenty_at_once_start_the_same_recipe_in_the_same_second(workspace, tiny_model):
    save_tiny_dataset(workspace)
    made: list[Run] = []
    faults: list[BaseException] = []

    def click() -> None:
        try:
            made.append(create_run(workspace, tiny_recipe(tiny_model), "same"))
        except BaseException as error:
            faults.append(error)

    clicks = [threading.Thread(target=click) for _ in range(20)]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join()
    assert all("exists already" in str(fault) for fault in faults), faults
    assert len({run.id for run in made}) == len(made) == len(list_runs(workspace)) == 20 - len(faults) >= 18
    assert all(run.recipe() == made[0].recipe() and run.spec()["kind"] == "train" for run in made)


def test_one_job_started_twice_has_one_worker(workspace):
    job = create_job(workspace.jobs / "one", "prepare", {})
    import fcntl

    with (job.folder / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_job(job.folder) == 1
    assert Job(job.folder).state().state == "queued"


def test_the_second_studio_reads_says_who_holds_it_and_takes_over(workspace, monkeypatch):
    program = ("import sys, time; from core.jobs.studio import hold_workspace; from core.workspace import Workspace\n"
               "assert hold_workspace(Workspace.open(sys.argv[1])) is None; print('held', flush=True); time.sleep(60)")
    first = subprocess.Popen([sys.executable, "-c", program, str(workspace.root)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout and first.stdout.readline() == "held\n"
        who = hold_workspace(workspace)
        assert who is not None and f"process {first.pid}," in str(who) and "工作室" in who.to("zh")
        with pytest.raises(StudioError, match=f"only reads the workspace: the studio of .* process {first.pid}, holds it"):
            save_tiny_dataset(workspace)
        assert list_datasets(workspace) == []
        first.kill()
        first.wait()
        assert hold_workspace(workspace) is None and hold_workspace(workspace) is None
        save_tiny_dataset(workspace)
    finally:
        first.kill()
        first.wait()
        read_only.pop(workspace.root, None)
        held = studio_module._held.pop(workspace.root, None)
        if held:
            held.close()

