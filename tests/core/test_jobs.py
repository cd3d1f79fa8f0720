"""Jobs outlive whoever asked for them, and their folders tell the truth however they end. Real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import JobFailed, StudioError
from core.jobs import folder as folder_module
from core.jobs import launch, queue
from core.jobs.active import active_jobs
from core.jobs.folder import Job, JobState, create_job, list_jobs, new_job_id
from core.jobs.process import ProcessIdentity
from core.jobs.worker import Recorder, give_way_to_pages
from core.machine import Gpu
from core.words import Text
from core.workspace import CHECKOUT, append_jsonl, read_json

ODD = Path(__file__).with_name("odd_jobs.py")
PATIENCE_SECONDS = 60


@pytest.fixture
def run_odd() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start the odd worker on some jobs."""
    children: list[subprocess.Popen] = []

    def start(*jobs: Job) -> subprocess.Popen:
        argv = [sys.executable, str(ODD), *(str(job.folder) for job in jobs)]
        children.append(subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, text=True, start_new_session=True))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def odd_job(workspace, do: str, kind: str = "odd", device: str = "cpu") -> Job:
    return create_job(workspace.jobs / new_job_id(kind, do), kind, {"do": do}, device)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def has_begun(job: Job) -> bool:
    return (job.folder / "began").exists()


def is_in(job: Job, *states: str) -> Callable[[], bool]:
    return lambda: job.state().state in states


def dead_process() -> ProcessIdentity:
    child = subprocess.Popen(["true"])
    identity = ProcessIdentity.of(child.pid)
    child.wait()
    return identity


# who is alive


def test_a_process_knows_itself_whatever_the_clock_says(monkeypatch):
    identity = ProcessIdentity.own()
    assert identity.is_alive()
    monkeypatch.setattr(psutil, "boot_time", lambda: 12345.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert identity.is_alive() and ProcessIdentity.own() == identity
    program = "from core.jobs.process import ProcessIdentity as P; import sys; print(P.model_validate_json(sys.argv[1]).is_alive())"
    seen = subprocess.run([sys.executable, "-c", program, identity.model_dump_json()], cwd=CHECKOUT, capture_output=True, text=True)
    assert seen.stdout.strip() == "True", seen.stderr


def test_a_recycled_number_is_a_stranger():
    own = ProcessIdentity.own()
    assert not own.model_copy(update={"started": own.started - 60}).is_alive()
    assert not own.model_copy(update={"boot": "another start of the machine"}).is_alive()
    assert not dead_process().is_alive()


def test_a_zombie_is_not_alive():
    child = subprocess.Popen(["sleep", "60"])
    identity = ProcessIdentity.of(child.pid)
    assert identity.is_alive()
    child.kill()
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "a zombie")
    assert psutil.pid_exists(child.pid) and not identity.is_alive()
    child.wait()


# what a folder says


def test_a_job_is_made_once_and_stays_inside(workspace):
    job = odd_job(workspace, "wait", device="cuda:0")
    assert job.state().state == "queued" and job.spec() == {"kind": "odd", "device": "cuda:0", "do": "wait"}
    with pytest.raises(StudioError, match="exists already"):
        create_job(job.folder, "odd", {})
    assert (workspace.jobs / new_job_id("merge", "../../x")).parent.resolve() == workspace.jobs
    assert [found.id for found in list_jobs(workspace)] == [job.id]


@pytest.mark.parametrize("garbage", ["", "{", "[]", "null", '{"state": "running"}', '{"state": "dancing", "kind": "x", "created": 1}',
                                     "\0\0\0", "\ud800"])
def test_a_damaged_state_is_a_failed_job_that_can_start_again(workspace, monkeypatch, garbage):
    job = odd_job(workspace, "wait", device="cuda:0")
    (job.folder / "state.json").write_text(garbage, encoding="utf-8", errors="surrogatepass")
    state = job.state()
    assert (state.state, state.kind, state.device) == ("failed", "odd", "cuda:0")
    assert str(Text.from_json(state.problem)) == "The state of this job cannot be read." and state.hint
    assert active_jobs(workspace) == [] and queue.waiting_before(workspace, odd_job(workspace, "wait", device="cuda:0")) == []
    monkeypatch.setattr(launch, "_launch", lambda job: None)
    launch.restart_job(job)
    assert (job.state().state, job.state().device) == ("queued", "cuda:0")


def test_a_folder_that_was_deleted_meanwhile_is_no_crash(workspace):
    job = Job(workspace.jobs / "gone")
    assert job.state().state == "failed" and job.log_tail() == "" and job.events() == []
    with pytest.raises(StudioError, match="spec.json"):
        job.spec()


def test_a_job_that_was_never_launched_is_not_waited_for_forever(workspace):
    job = odd_job(workspace, "wait")
    assert job.state().is_active
    for offset in (-60, 3600):  # an hour ahead: the clock was set back since
        job.write_state(JobState(kind="odd", created=time.time() + offset))
        assert job.state().state == "failed"


def test_a_dead_process_is_reported_with_a_way_out(workspace):
    job = odd_job(workspace, "wait")
    job.write_state(JobState(kind="odd", created=1.0, state="running", heartbeat=5.0, process=dead_process()))
    state = job.state()
    assert (state.state, state.ended) == ("failed", 5.0)
    assert "killed" in str(Text.from_json(state.problem)) and "run resume" in str(Text.from_json(state.hint))
    with pytest.raises(JobFailed, match="killed"):
        launch.wait_for_job(job)
    assert launch.memory_bytes(state) == 0 and launch.stop_job(job).state == "failed"
    assert not (job.folder / "stop").exists(), "an ended job is not asked to stop"


def test_a_failure_without_words_is_still_a_failure(workspace):
    job = odd_job(workspace, "wait")
    job.write_state(JobState(kind="odd", created=1.0, state="failed"))
    with pytest.raises(JobFailed):
        launch.wait_for_job(job)


def test_the_tail_of_a_huge_log_is_read_without_the_rest(workspace):
    job = odd_job(workspace, "wait")
    with job.log.open("wb") as stream:
        stream.truncate(40 << 30)  # sparse: it takes no room, and would never fit in memory
        stream.seek(0, os.SEEK_END)
        stream.write("\n".join(f"row {n} 你好" for n in range(500)).encode() + b"\n")
    lines = job.log_tail(200).split("\n")
    assert len(lines) == 200 and lines[0] == "row 300 你好" and lines[-1] == "row 499 你好"


def test_of_a_progress_bar_the_last_form_is_left(workspace):
    job = odd_job(workspace, "wait")
    job.log.write_bytes(b"begin\r\n 10%\r 50%\r100%\nhalf\r\n\xff\xfe\nend")
    assert job.log_tail().split("\n") == ["begin", "100%", "half", "\ufffd\ufffd", "end"]


def test_events_are_lines_that_survive_a_killed_writer(workspace):
    job = odd_job(workspace, "wait")
    job.event("snapshot", step=2)
    with (job.folder / "events.jsonl").open("ab") as stream:
        stream.write(b'{"event": "snap')
    append_jsonl(job.folder / "events.jsonl", {"event": "resumed"})
    assert [event["event"] for event in job.events()] == ["snapshot", "resumed"]


def test_the_time_left_is_told_from_this_part_s_own_pace(workspace, monkeypatch):
    job = odd_job(workspace, "wait")
    clock = iter([0.0, 100.0, 103.0, 200.0])
    monkeypatch.setattr("core.jobs.worker.time.monotonic", lambda: next(clock))
    recorder = Recorder(job, JobState(kind="odd", created=1.0, process=ProcessIdentity.own()))
    left = []
    for done, label in ((5, "training"), (8, "training"), (0, "saving")):
        recorder.progress(done, 10, Text(label))
        left.append(job.state().progress.seconds_left)
    assert left == [None, 2.0, None], "a resumed training begins at 5; that took no time"


# how work ends


def test_every_end_is_told(workspace, run_odd):
    """Four failures and a full disk, one after the other in one process."""
    ends = {do: odd_job(workspace, do) for do in ("explain", "surprise", "leave", "eat", "fill_disk")}
    unknown = create_job(workspace.jobs / "unknown", "dance", {})
    child = run_odd(*list(ends.values())[:4], unknown, ends["fill_disk"])
    output, _ = child.communicate(timeout=PATIENCE_SECONDS)
    assert child.returncode == 1
    problems = {do: str(Text.from_json(job.state().problem)) for do, job in ends.items() if job.state().state == "failed"}
    assert problems == {
        "explain": "Row 3 is empty.", "surprise": "It ended with an error nobody foresaw: KeyError: 'colour'",
        "leave": "It ended with an error nobody foresaw: SystemExit: 3", "eat": "There was not enough memory.",
        "fill_disk": f"The disk is full; {ends['fill_disk'].folder / 'state.json'} was not written.",
    }
    assert all(job.state().hint and job.state().ended for job in ends.values())
    assert "KeyError: 'dance'" in str(Text.from_json(unknown.state().problem))
    assert "Traceback" in output and 'raise KeyError("colour")' in output, "the log keeps what the user is spared"
    assert read_json(ends["fill_disk"].folder / "state.json")["state"] == "failed", "written in place of the old words"


def test_a_worker_has_its_folder_for_itself_and_heeds_a_signal(workspace, run_odd):
    job = odd_job(workspace, "wait")
    first = run_odd(job)
    until(is_in(job, "running"), "the first worker")
    before = job.state().process
    second = run_odd(job)
    output, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 1 and "another worker has this job already" in output
    for start in (launch.start_job, launch.restart_job):
        with pytest.raises(StudioError, match="is at work already") as caught:
            start(job)
        assert "run stop" in str(caught.value.hint)
    assert job.state().state == "running" and job.state().process == before

    os.kill(first.pid, signal.SIGHUP)  # a terminal that closes
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(PATIENCE_SECONDS) == 0
    assert job.state().state == "stopped" and job.state().problem is None


def test_a_worker_that_does_not_listen_is_killed(workspace, run_odd, monkeypatch):
    monkeypatch.setattr(launch, "TERM_GRACE_SECONDS", 0.5)
    job = odd_job(workspace, "ignore")
    child = run_odd(job)
    until(lambda: has_begun(job), "the work")
    state = launch.stop_job(job, grace_seconds=0.5)
    assert child.wait(PATIENCE_SECONDS) == -signal.SIGKILL and (job.folder / "term").exists(), "TERM comes before KILL"
    assert state.state == "failed" and "asked to stop" in str(Text.from_json(state.problem))


@pytest.mark.parametrize(("device", "lowered"), [("cpu", [10]), ("cuda:1", []), ("cuda:0,cuda:1", [])])
def test_work_on_the_processors_gives_way_to_the_pages(workspace, monkeypatch, device, lowered):
    niced: list[int] = []
    monkeypatch.setattr(os, "nice", niced.append)
    give_way_to_pages(create_job(workspace.jobs / "20260101-120000-odd-x-0000", "odd", {}, device))
    assert niced == lowered


def test_a_worker_is_started_among_the_gpus_that_it_waits_for(workspace, monkeypatch):
    gpus = [Gpu(index=number, name="H100", total_bytes=1, free_bytes=1) for number in range(3)]
    monkeypatch.setattr("core.machine.read_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    real, seen = subprocess.Popen, []

    def start(argv, **options):
        seen.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        return real(["true"])

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    for device in ("cuda:1", "cuda:2,cuda:0", "cpu"):
        launch.start_job(odd_job(workspace, f"wait-{len(seen)}", device=device))
    assert seen == ["1", "2,0", None]


def test_a_worker_that_cannot_even_begin_is_known_at_once(workspace, monkeypatch):
    monkeypatch.setattr(launch.sys, "executable", "/bin/false")
    monkeypatch.setattr(folder_module, "LAUNCH_GRACE_SECONDS", 1e9)
    job = odd_job(workspace, "wait")
    launch.start_job(job)
    with pytest.raises(JobFailed, match="killed"):
        launch.wait_for_job(job)


def test_one_device_one_job_in_the_order_of_asking(workspace, run_odd):
    """Started in the wrong order, held up by a worker that gets killed, with one that gives up waiting."""
    first, second, third, tired = (odd_job(workspace, "wait", "queued", "test:0") for _ in range(4))
    elsewhere = odd_job(workspace, "wait", "queued", "test:1")
    holder = run_odd(first)
    until(is_in(first, "running"), "the holder")
    workers = {job.id: run_odd(job) for job in (tired, third, second, elsewhere)}
    until(lambda: all(job.state().process for job in (second, third, tired)), "three that wait")
    until(is_in(elsewhere, "running"), "another device is free")
    assert [job.id for job in queue.waiting_before(workspace, third)] == [second.id]
    assert queue.holder(workspace, "test:0").id == first.id

    tired.request_stop()
    until(is_in(tired, "stopped"), "the one that gave up")
    assert not has_begun(tired)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    until(is_in(second, "running"), "the second, as the kernel gives the lock back")
    assert first.state().state == "failed" and not has_begun(third)
    (second.folder / "end").touch()
    until(is_in(third, "running"), "the third")
    for job in (third, elsewhere):
        (job.folder / "end").touch()
        assert workers[job.id].wait(PATIENCE_SECONDS) == 0
    assert second.state().state == third.state().state == elsewhere.state().state == "finished"
    assert second.state().ended <= third.state().started
    assert json.loads((third.folder / "state.json").read_text())["result"] == third.state().result
