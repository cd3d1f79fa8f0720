"""Faults made for real: a full or read-only file system, a clock set back, process numbers and files that are not what they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import psutil
import pytest

from benchmarks.fault_figures import FAULTS, Fault, read_report, table
from core.classroom.queue import ClassQueue, Entry, fair_order
from core.classroom.room import Classroom
from core.data.library import list_datasets, save_dataset
from core.errors import StudioError
from core.housekeeping.trash import throw_away
from core.jobs import studio as studio_module
from core.jobs.active import active_jobs
from core.jobs.folder import Job, JobState, create_job, list_jobs
from core.jobs.process import ProcessIdentity
from core.jobs.queue import waiting_before
from core.jobs.studio import hold_workspace
from core.jobs.turns import LAST_TURN
from core.jobs.worker import Recorder, run_job
from core.recipe.draft import delete_recipe, write_draft
from core.recipe.files import save_recipe
from core.runs import Run, list_runs
from core.train.create import create_run
from core.words import Text
from core.workspace import CHECKOUT, Workspace, append_jsonl, read_jsonl, read_only
from tests.core.conftest import listing, save_tiny_dataset, tiny_recipe, tiny_rows


def test_a_workspace_that_must_not_be_written_can_be_read(tmp_path, tiny_model, record_property):
    workspace = Workspace.open(tmp_path / "workspace")
    save_tiny_dataset(workspace)
    save_recipe(workspace, "mine", tiny_recipe(tiny_model))
    run = create_run(workspace, tiny_recipe(tiny_model), "old")
    run.write_state(JobState(kind="train", state="stopped", created=1.0))
    root = str(workspace.root)
    bound = os.geteuid() == 0 and all(
        subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
        for arguments in (["--bind", root, root], ["-o", "remount,ro,bind", root]))
    if not bound:
        pytest.skip("only root may mount a folder so that it cannot be written")
    before = listing(workspace.root)
    try:
        place = Workspace.open(workspace.root)
        assert [one.state().state for one in list_runs(place)] == ["stopped"] and len(list_datasets(place)) == 1
        assert active_jobs(place) == [] and "cannot be written" in str(hold_workspace(place)) and place.root not in read_only
        writers = (lambda: create_run(place, tiny_recipe(tiny_model), "new"), lambda: save_dataset(place, "x", tiny_rows(), "t"),
                   lambda: run.request_stop(), lambda: throw_away(place, run.folder), lambda: append_jsonl(run.folder / "x.jsonl", 1),
                   lambda: delete_recipe(place, "mine"), lambda: write_draft(place, "mine", "x"))
        for write in writers:
            with pytest.raises(StudioError, match="cannot be written"):
                write()
        done = subprocess.run([sys.executable, "-m", "studio.cli", "run", "delete", "old", "--yes", "--workspace", str(place.root)],
                              cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
        record_property("injections", len(writers) + 1)
        assert listing(place.root) == before
        record_property("figure", f"{len(before)} files read, none changed")
    finally:
        subprocess.run(["umount", "-l", str(workspace.root)], check=True)


def test_a_clock_set_back_changes_no_state_no_order_and_no_time_left(workspace, monkeypatch, record_property):
    day, real = 86_400.0, time.time
    asked: list[Job] = []
    back = (0, 1, 2, 1, 400)  # days that the clock stands behind at each asking
    for number, days in enumerate(back):
        monkeypatch.setattr(time, "time", lambda days=days: real() - days * day)
        asked.append(create_job(workspace.jobs / f"{9 - number}-asked-as-{number}", "judge", {}))  # names in the other order
        asked[-1].note_launch(ProcessIdentity.own())
    first = asked[0]
    assert {job.state().state for job in asked} == {"queued"}
    assert [[other.id for other in waiting_before(workspace, job)] for job in asked] == [
        [earlier.id for earlier in reversed(asked[:number])] for number in range(len(asked))], "first come, first served"
    (workspace.cache / LAST_TURN).unlink()  # an emptied cache
    assert len(waiting_before(workspace, first)) == 0
    record_property("injections", len(back) + 1)
    record_property("figure", f"all {len(back)} in order, the clock up to {max(back)} days behind")
    recorder = Recorder(first, first.state().model_copy(update={"state": "running", "process": ProcessIdentity.own()}))
    recorder.progress(0, 10, Text("training"))
    monkeypatch.setattr(time, "time", lambda: real() - 500 * day)
    recorder.progress(5, 10, Text("training"))
    left = first.state().progress.seconds_left
    assert first.state().state == "running" and (left is None or 0 <= left < 60)


def test_nobody_of_a_class_starves_when_the_clock_is_set_back(workspace, monkeypatch, record_property):
    """Two students ask again and again; the clock goes back an hour in between, and turns go on being taken in turn."""
    room, real = Classroom.open(workspace), time.time
    queue = ClassQueue(workspace.root)
    places = {slug: room.workspace_of(room.join(slug)[0].slug) for slug in ("ana", "ben")}
    served: list[str] = []
    for turn in range(8):
        if turn == 3:
            monkeypatch.setattr(time, "time", lambda: real() - 3600)
        waiting = [Entry(member=slug, job=job.id, kind="judge", device="cpu", asked=job.state().turn) for slug, job in
                   ((slug, create_job(place.jobs / f"{slug}-{turn}", "judge", {})) for slug, place in places.items())]
        chosen = fair_order(waiting, queue.last_served(waiting))[0]
        with queue.take_turn(Job(places[chosen.member].jobs / chosen.job), chosen.member, lambda: True, lambda: False) as is_ours:
            assert is_ours
            served.append(chosen.member)
    assert served == ["ana", "ben"] * 4
    assert all(0 <= record["seconds"] < 60 for record in read_jsonl(queue.folder / "durations.jsonl"))
    record_property("injections", 1)
    record_property("figure", f"{len(served)} turns, {sum(a == b for a, b in pairwise(served))} out of turn")


def test_every_fault_of_the_table_is_injected_by_a_test_that_exists():
    for fault in FAULTS:
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (CHECKOUT / "tests" / file).read_text(encoding="utf-8"), test
    report = ('<testsuites><testsuite><testcase classname="tests.core.test_faults" name="a"><properties>'
              '<property name="injections" value="3"/><property name="figure" value="2 ms"/></properties></testcase>'
              '<testcase classname="tests.e2e.b" name="b"><skipped/></testcase></testsuite></testsuites>')
    faults = (Fault("one", "fine", ("core/test_faults.py::a",)), Fault("two", "fine", ("e2e/b.py::b",)), Fault("three", "?", ("c.py::c",)))
    rows = [[cell.strip() for cell in line.split("|")[3:6]] for line in table(faults, read_report(report)).splitlines()[2:]]
    assert rows[:3] == [["3", "3", "2 ms"], ["0", "skipped", "-"], ["0", "did not run", "-"]]


def test_a_number_used_again_is_a_stranger(workspace, record_property):
    job = create_job(workspace.jobs / "old", "judge", {})
    own = ProcessIdentity.own()
    strangers = (own.model_copy(update={"started": own.started - 5}), own.model_copy(update={"boot": "another"}))
    slowest = 0.0
    for stranger in strangers:
        job.write_state(JobState(kind="judge", state="running", created=1.0, process=stranger))
        began = time.monotonic()
        assert job.state().state == "failed" and not job.has_worker() and active_jobs(workspace) == []
        slowest = max(slowest, time.monotonic() - began)
    job.write_state(JobState(kind="judge", state="running", created=1.0, process=own))
    assert job.state().state == "running"
    record_property("injections", len(strangers))
    record_property("figure", f"true state after {slowest * 1000:.1f} ms")


def test_a_state_file_cut_off_anywhere_harms_nobody_else(workspace, record_property):
    good = create_job(workspace.jobs / "good", "judge", {})
    good.write_state(JobState(kind="judge", state="finished", created=1.0))
    job = create_job(workspace.jobs / "cut", "judge", {})
    whole = (job.folder / "state.json").read_bytes()
    lengths, slowest = range(0, len(whole) - 2), 0.0
    for length in lengths:
        (job.folder / "state.json").write_bytes(whole[:length])
        began = time.monotonic()
        assert [one.state().state for one in list_jobs(workspace)] == ["failed", "finished"]
        slowest = max(slowest, time.monotonic() - began)
    record_property("injections", len(lengths))
    record_property("figure", f"cut after every byte; both jobs listed in {slowest * 1000:.1f} ms")


def test_half_a_line_of_events_waits_for_the_next_writer(workspace, record_property):
    good = create_job(workspace.jobs / "good", "judge", {})
    good.event("begin")
    line = json.dumps({"time": 1.0, "event": "snapshot", "what": "小明"}, ensure_ascii=False).encode()
    path = good.folder / "events.jsonl"
    before = path.read_bytes()
    for length in range(1, len(line)):  # also in the middle of a character
        path.write_bytes(before + line[:length])
        assert [event["event"] for event in good.events()] == ["begin"]
        good.event("end")
        assert [event["event"] for event in good.events()] == ["begin", "end"]
    record_property("injections", len(line) - 1)
    record_property("figure", "no whole line lost")


def test_of_a_log_of_two_gigabytes_only_the_end_is_read(workspace, record_property):
    job = create_job(workspace.jobs / "long", "judge", {})
    with job.log.open("wb") as stream:
        stream.truncate(2 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nthe last line\n")
    before, began, read = psutil.Process().memory_info().rss, time.monotonic(), psutil.Process().io_counters().read_chars
    assert job.log_tail(1) == "the last line"
    seconds, read = time.monotonic() - began, psutil.Process().io_counters().read_chars - read
    assert read < 200_000
    record_property("injections", 1)
    record_property("figure", f"{read / 1000:.0f} KB read of {job.log.stat().st_size / 1e9:.1f} GB, in {seconds * 1000:.1f} ms")
    assert psutil.Process().memory_info().rss - before < 8 << 20 and seconds < 2
    assert psutil.Process().memory_info().rss < 8 << 30 and len(job.log_tail(10**9)) <= 64_000


def test_twenty_at_once_start_the_same_recipe_in_the_same_second(workspace, tiny_model, record_property):
    save_tiny_dataset(workspace)
    made: list[Run] = []
    faults: list[BaseException] = []

    def click() -> None:
        try:
            made.append(create_run(workspace, tiny_recipe(tiny_model), "same"))
        except BaseException as error:
            faults.append(error)

    clicks, began = [threading.Thread(target=click) for _ in range(20)], time.monotonic()
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join()
    seconds = time.monotonic() - began
    assert all("exists already" in str(fault) for fault in faults), faults
    assert len({run.id for run in made}) == len(made) == len(list_runs(workspace)) == 20 - len(faults) >= 18
    assert all(run.recipe() == made[0].recipe() and run.spec()["kind"] == "train" for run in made)
    record_property("injections", len(clicks))
    record_property("figure", f"{len(made)} runs, {len(faults)} refused by a sentence, all in {seconds:.2f} s")


def test_one_job_started_twice_has_one_worker(workspace, record_property):
    job = create_job(workspace.jobs / "one", "prepare", {})
    import fcntl

    with (job.folder / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        assert run_job(job.folder) == 1
    assert Job(job.folder).state().state == "queued"
    record_property("injections", 1)
    record_property("figure", f"the second one left after {(time.monotonic() - began) * 1000:.1f} ms")


def test_the_second_studio_reads_says_who_holds_it_and_takes_over(workspace, record_property):
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
        began = time.monotonic()
        assert hold_workspace(workspace) is None and hold_workspace(workspace) is None
        record_property("injections", 1)
        record_property("figure", f"taken over {(time.monotonic() - began) * 1000:.1f} ms after the first was killed")
        save_tiny_dataset(workspace)
    finally:
        first.kill()
        first.wait()
        read_only.pop(workspace.root, None)
        held = studio_module._held.pop(workspace.root, None)
        if held:
            held.close()

