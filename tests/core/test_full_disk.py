"""Disk full, on a small file system of its own: every writer ends in one sentence, what was there is whole, nothing half stays."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.access.password import set_password
from core.chat.handle import Handle, chat_folder, read_handle, write_handle
from core.chat.talk import Exchange, Said, load_talk, new_talk_id, save_exchange
from core.classroom.handout import hand_out_dataset, hand_out_recipe
from core.classroom.queue import ClassQueue
from core.classroom.room import Classroom
from core.classroom.wall import write_results
from core.data.export import export_rows
from core.data.hold_out import hold_out_rows
from core.data.import_job import copy_new, keep_upload
from core.data.library import append_rows, list_datasets, load_dataset, save_dataset, update_rows
from core.data.mix import Part, mix_datasets
from core.data.persona import Persona
from core.data.store import save_one_pair, save_persona
from core.errors import StudioError
from core.housekeeping.archive_reading import import_archive
from core.housekeeping.archive_writing import export_run, export_workspace
from core.housekeeping.trash import empty_trash, list_trash, restore, throw_away
from core.jobs.folder import JobState, Progress, create_job, list_jobs
from core.jobs.process import ProcessIdentity
from core.jobs.worker import Recorder, run_job
from core.judge.probes import add_probe
from core.lesson import start_lesson
from core.migrations.run import bring_up_to_date
from core.migrations.steps import VERSION
from core.recipe.draft import save_draft, write_draft
from core.recipe.files import dump_recipe, save_recipe
from core.runs import list_runs
from core.train.create import create_run
from core.words import Text
from core.workspace import CHECKOUT, Workspace, append_jsonl, fill_folder, read_json, write_json, write_text
from tests.core.conftest import PAGE, Writers, listing, refuse, refuse_until_it_fits, save_tiny_dataset, tiny_recipe, tiny_rows


def test_what_makes_jobs_runs_and_data_leaves_all_as_it_was(small, tiny_model, tmp_path, record_property):
    import torch

    from core.data.importing import Importing, Reading, import_rows
    from core.train.batches import Fit
    from core.train.snapshots import save_resume_state

    workspace, fill = small
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "before")
    run.write_state(JobState(kind="train", state="stopped", created=time.time()))
    write_json(run.folder / "verdict.json", {"old": True})
    append_jsonl(run.folder / "answers.jsonl", {"step": 0})
    export_run(workspace, run, tmp_path / "run.tar")
    many = [dict(row) for row in tiny_rows()] * 2000
    (tmp_path / "rows.jsonl").write_text((workspace.datasets / "tiny/rows.jsonl").read_text() * 2000)
    card = list_datasets(workspace)[0].card
    tensors = [("layer.weight", torch.zeros(200_000))]
    writers: Writers = {
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
        assert refuse(name, write, workspace.root), f"{name} found room"
    record_property("injections", len(writers))
    record_property("figure", f"{len(writers)} writers, no file changed")
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


def test_a_worker_on_a_full_disk_has_its_last_word(small, monkeypatch, record_property):
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
    (workspace.root.parent / "filler").unlink()
    late = create_job(workspace.jobs / "late", "prepare", {})
    fill()
    child = os.fork()
    if child == 0:  # it listens to signals as long as it lives
        try:
            os._exit(run_job(late.folder))
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    began = time.monotonic()
    assert late.state().state == "failed" and "disk is full" in str(Text.from_json(late.state().problem or {}))
    record_property("injections", 2)
    record_property("figure", f"true state and its reason read in {(time.monotonic() - began) * 1000:.1f} ms")


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


def test_what_people_write_leaves_all_as_it_was(small, tiny_model, tmp_path, record_property):
    """Chat, recipes, datasets, exports, the password: each breaks off at several places, and then finds room."""
    workspace, fill = small
    save_tiny_dataset(workspace)
    plain = [{"messages": [{"role": "user", "content": f"What is {number}?"},
                           {"role": "assistant", "content": f"A number: {number}. " * 9}], "group": "general", "lang": "en"}
             for number in range(60)]
    save_dataset(workspace, "plain", plain, "test")
    run = create_run(workspace, tiny_recipe(tiny_model), "before")
    run.write_state(JobState(kind="train", state="stopped", created=1.0))
    export_run(workspace, run, tmp_path / "run.tar.gz", with_base=True)
    save_recipe(workspace, "mine", tiny_recipe(tiny_model))
    talk, said = new_talk_id(), Exchange(question="And?", asked=1.0, answers=[Said(model="tiny", text="word " * 1200)])
    save_exchange(workspace, talk, said)
    handle = Handle(port=1, token="first", process=ProcessIdentity.own())
    write_handle(chat_folder(workspace), handle)
    (tmp_path / "rejected.jsonl").write_text('{"row": 1}\n' * 2000)
    text, rows = dump_recipe(tiny_recipe(tiny_model)), plain * 40
    writers: Writers = {
        "talk": lambda: save_exchange(workspace, talk, said),
        "handle": lambda: write_handle(chat_folder(workspace), handle.model_copy(update={"token": "second"})),
        "draft": lambda: write_draft(workspace, "mine", text),
        "saved draft": lambda: save_draft(workspace, "mine", text + "# changed\n", "mine"),
        "recipe": lambda: save_recipe(workspace, "mine", tiny_recipe(tiny_model, schedule__seed=9)),
        "persona": lambda: save_persona(workspace, Persona(name="Alex"), [], "alex"),
        "one pair": lambda: save_one_pair(workspace, Persona(name="Mei"), 50, "mei"),
        "rows of a chat": lambda: append_rows(workspace, "tiny", rows[:50], "chat"),
        "held-out rows": lambda: hold_out_rows(workspace, "plain", 10),
        "mixture": lambda: mix_datasets(workspace, "mixed", [Part("tiny", 1.0), Part("plain", 1.0)], 200),
        "probe": lambda: add_probe(workspace, run, "x" * 1900),
        **{f"export as {ending}": lambda ending=ending: export_rows(iter(rows), workspace.root / f"rows{ending}")
           for ending in (".jsonl", ".json", ".csv")},
        "export for others": lambda: export_rows(iter(rows), workspace.root / "openai.jsonl", "openai"),
        "refused records": lambda: copy_new(tmp_path / "rejected.jsonl", workspace.root / "rejected.jsonl"),
        "archive of all": lambda: export_workspace(workspace, workspace.root.parent / "all.tar.gz"),
        "archive taken in": lambda: import_archive(workspace, tmp_path / "run.tar.gz", most_bytes=10**9),
        "password": lambda: set_password(workspace, "correct horse battery"),
    }
    record_property("injections", refuse_until_it_fits(writers, workspace.root.parent, fill))
    record_property("figure", f"{len(writers)} writers, no file changed by an attempt that broke off")
    assert len(load_talk(workspace, talk)) == 2 and read_handle(chat_folder(workspace)).token == "second"
    held_out = load_dataset(workspace, "plain")
    assert held_out.card.rows == len(held_out.rows()) == 50 and held_out.card.probes == len(held_out.probes()) > 9


def test_the_trash_needs_no_room(small, tiny_model, record_property):
    workspace, fill = small
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "mine")
    run.write_state(JobState(kind="train", state="stopped", created=1.0))
    fill()
    before = listing(workspace.root)
    for folder in (run.folder, workspace.datasets / "tiny"):
        assert restore(workspace, throw_away(workspace, folder)) == folder
    assert listing(workspace.root) == before
    throw_away(workspace, run.folder)
    freed = empty_trash(workspace)
    assert freed > 0 and list_trash(workspace) == [] and list_runs(workspace) == []
    record_property("injections", 6)
    record_property("figure", f"{freed} bytes came back")


def test_a_class_on_a_full_disk(small, tiny_model, record_property):
    """Nobody gets half a handout, nobody joins by half, and a job that is done stays done."""
    workspace, fill = small
    room = Classroom.open(workspace)
    people = [room.join(name)[0].slug for name in ("Ana", "Ben")]
    save_dataset(workspace, "given", tiny_rows() * 30, "test")
    save_recipe(workspace, "given", tiny_recipe(tiny_model))
    injections = 0
    for give, place in ((hand_out_dataset, "datasets/given"), (hand_out_recipe, "recipes/given.yaml")):
        outcomes: list[str] = []
        for doublings in range(12):
            fill(PAGE * 2**doublings // 2)
            handed = give(room, "given")
            outcomes = [one.outcome for one in handed]
            for one in handed:
                target = room.folder / one.student / place
                assert target.exists() == (one.outcome != "failed")
                assert one.error is None or "disk is full" in str(one.error.problem)
            injections += outcomes.count("failed")
            if "failed" not in outcomes:
                break
        assert set(outcomes) <= {"given", "had_it"} and injections
    assert all(load_dataset(room.workspace_of(slug), "given").rows() == tiny_rows() * 30 for slug in people)
    collect: Writers = {"results": lambda: write_results(room, workspace.root.parent / "results.zip")}
    injections += refuse_until_it_fits(collect, workspace.root.parent, fill)
    fill()
    with pytest.raises(StudioError, match="disk|No space"):
        room.join("Cem")
    assert [student.slug for student in room.students()] == people
    fill(16 * PAGE)
    job = create_job(room.workspace_of("ana").jobs / "done", "judge", {})
    with ClassQueue(workspace.root).take_turn(job, "ana", lambda: True, lambda: False) as is_ours:
        assert is_ours
        fill()  # the durations cannot be noted when it ends, and that is no reason to call it failed
    record_property("injections", injections + 2)
    record_property("figure", f"{injections} handouts and results refused, none half there")


def test_a_migration_that_finds_no_room_is_made_at_the_next_opening(small, tiny_model, record_property):
    workspace, fill = small
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "old")
    run.write_state(JobState(kind="train", state="stopped", created=1.0))
    (run.folder / "resume/000002").mkdir(parents=True)
    old = {run.folder / "resume/000002/step.json": {"step": 2}, run.folder / "verdict.json": {"front": [{"step": 2}], "notes": "x" * 9000}}
    for path, data in old.items():
        write_json(path, data)
    (workspace.root / "version.json").unlink()
    new = [{"step": 2, "fit": {"tokens": 2**62, "rows": 1}}, {"front": [2], "notes": "x" * 9000}]
    for attempts in range(12):
        fill(PAGE * 2**attempts // 2)
        bring_up_to_date(workspace)
        assert all(read_json(path) in (before, after) for (path, before), after in zip(old.items(), new, strict=True))
        for kept in (workspace.root / "backups").rglob("*.json"):
            assert read_json(kept) == old[workspace.root / Path(*kept.relative_to(workspace.root / "backups").parts[1:])]
        if (workspace.root / "version.json").exists() and [read_json(path) for path in old] == new:
            break
    assert 0 < attempts < 11 and read_json(workspace.root / "version.json")["version"] == VERSION
    record_property("injections", attempts)
    record_property("figure", f"brought up to date at opening {attempts + 1}")
