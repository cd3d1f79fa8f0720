"""Where on the path one is, which jobs are at work, and that nothing starts twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from core.data.library import save_dataset
from core.data.persona import Persona
from core.errors import StudioError
from core.jobs.active import active_jobs, newest_job
from core.jobs.folder import Job, JobState, create_job, new_job_id
from core.jobs.process import ProcessIdentity
from core.jobs.queue import holder, waiting_before
from core.journey import STAGES, read_journey
from core.lesson import newest_lesson, resume_lesson, start_lesson_once
from core.recipe.files import load_preset
from core.runs import Run
from core.train.start import is_in_lesson, judge_once, on_dataset, plan_on_disk, start_once
from core.train.steer import delete_run, discard_run, resume_run
from core.workspace import Workspace, write_json


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were started; none of them gets a process."""
    jobs: list[Job] = []
    for place in ("core.train.create", "core.train.start", "core.lesson"):
        monkeypatch.setattr(f"{place}.start_job", jobs.append)
    for place in ("core.train.steer", "core.lesson"):
        monkeypatch.setattr(f"{place}.restart_job", jobs.append)
    return jobs


@pytest.fixture
def dataset(workspace: Workspace) -> str:
    rows = [{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}], "group": group, "lang": "en"}
            for group in ("identity", "identity", "near", "general")]
    return save_dataset(workspace, "alex", rows, "test").card.name


def put_state(job: Job, state: str, **fields: object) -> None:
    process = ProcessIdentity.own() if state in ("running", "stopping", "queued") else None
    job.write_state(job.state().model_copy(update={"state": state, "process": process, **fields}))


def states(workspace: Workspace, run: str | None = None) -> dict[str, str]:
    return {stage.name: stage.state for stage in read_journey(workspace, run)}


def test_the_path_begins_with_data(workspace: Workspace) -> None:
    assert tuple(states(workspace)) == STAGES
    assert states(workspace) == {"data": "next", "recipe": "open", "train": "open", "compare": "open", "merge": "open", "chat": "open"}


def test_the_path_goes_on_with_what_is_on_the_disk(workspace: Workspace, dataset: str) -> None:
    assert states(workspace)["recipe"] == "next"
    run = Run(create_job(workspace.runs / "20260101-120000-alex", "train", {}).folder)
    put_state(run, "running")
    assert states(workspace)["train"] == "running"
    assert states(workspace)["compare"] == "next"
    (run.folder / "checkpoints" / "000003").mkdir(parents=True)
    put_state(run, "finished")
    assert states(workspace)["train"] == "done"
    write_json(run.folder / "verdict.json", {"verdict": "recommended"})
    assert states(workspace)["merge"] == "next"
    (workspace.models / "alex").mkdir()
    write_json(workspace.models / "alex" / "merge.json", {"model": f"{run.id}@3"})
    assert states(workspace) == dict.fromkeys(STAGES[:5], "done") | {"chat": "next"}


def test_the_path_is_seen_from_the_run_in_view(workspace: Workspace, dataset: str) -> None:
    for name in ("20260101-120000-old", "20260101-120001-new"):
        put_state(create_job(workspace.runs / name, "train", {}), "finished")
    (workspace.runs / "20260101-120000-old" / "checkpoints" / "000003").mkdir(parents=True)
    assert states(workspace)["train"] == "next"
    assert states(workspace, "20260101-120000-old")["train"] == "done"
    assert states(workspace, "gone")["train"] == "next"


def test_active_jobs_are_found_among_ended_ones_and_again_after_a_restart(workspace: Workspace) -> None:
    jobs = [create_job(workspace.jobs / new_job_id("judge", str(index)), "judge", {"run": str(index)}) for index in range(3)]
    for job in jobs:
        put_state(job, "finished")
    assert active_jobs(workspace) == []
    put_state(jobs[1], "running")
    assert [job.id for job, _ in active_jobs(workspace)] == [jobs[1].id]
    put_state(jobs[1], "failed")
    assert active_jobs(workspace) == []


def test_asking_for_active_jobs_is_cheap_with_hundreds_of_ended_ones(workspace: Workspace) -> None:
    for index in range(300):
        put_state(create_job(workspace.runs / f"20260101-120000-{index:03d}", "train", {}), "finished")
    active_jobs(workspace)
    began = time.perf_counter()
    active_jobs(workspace)
    assert time.perf_counter() - began < 0.1


def test_the_newest_job_of_a_kind(workspace: Workspace) -> None:
    first = create_job(workspace.jobs / "20260101-120000-judge-a-0001", "judge", {"run": "a"})
    create_job(workspace.jobs / "20260101-120001-judge-b-0001", "judge", {"run": "b"})
    create_job(workspace.jobs / "20260101-120002-ask-judge-a-0001", "ask", {"run": "a"})
    assert newest_job(workspace, "judge", run="a") == first
    assert newest_job(workspace, "judge", run="c") is None


def test_a_lesson_that_waits_for_others_holds_no_device(workspace: Workspace) -> None:
    lesson = create_job(workspace.jobs / "20260101-120000-lesson-alex-0001", "lesson", {})
    put_state(lesson, "running")
    assert holder(workspace, "cpu") is None
    run = create_job(workspace.runs / "20260101-120001-alex", "train", {})
    put_state(run, "running")
    later = create_job(workspace.runs / "20260101-120002-alex", "train", {})
    put_state(later, "queued")
    last = create_job(workspace.runs / "20260101-120003-alex", "train", {})
    put_state(last, "queued", created=time.time() + 1)
    found = holder(workspace, "cpu")
    assert found is not None
    assert found.id == run.id
    assert [job.id for job in waiting_before(workspace, last)] == [later.id]


def test_the_recipe_goes_onto_the_chosen_dataset(workspace: Workspace, dataset: str) -> None:
    recipe = load_preset("identity-lesson-replay")
    moved = on_dataset(recipe, "alex")
    assert {source.dataset for source in moved.data.sources} == {"alex"}
    assert on_dataset(recipe, "") == recipe
    plan = plan_on_disk(workspace, moved)
    assert plan.updates == recipe.schedule.updates
    with pytest.raises(StudioError, match="no dataset called"):
        plan_on_disk(workspace, on_dataset(recipe, "gone"))


def test_two_clicks_are_one_training(workspace: Workspace, dataset: str, started: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.train.create.snapshot_bytes", lambda *_: 1000)
    recipe = on_dataset(load_preset("identity-lesson-cpu"), dataset)
    results: list[tuple[Run, bool]] = []
    threads = [threading.Thread(target=lambda: results.append(start_once(workspace, recipe))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1
    assert {run.id for run, _ in results} == {started[0].id}
    assert sorted(is_new for _, is_new in results) == [False, False, False, True]
    put_state(started[0], "finished")
    assert start_once(workspace, recipe)[1], "a second one after the first has ended is wanted"


def test_two_clicks_are_one_lesson_and_one_judging(workspace: Workspace, started: list[Job]) -> None:
    lesson = start_lesson_once(workspace, Persona(name="Alex"))
    assert start_lesson_once(workspace, Persona(name="Bo")) == lesson == newest_lesson(workspace)
    resume_lesson(workspace, lesson)
    assert started == [lesson]
    put_state(lesson, "stopped")
    resume_lesson(workspace, lesson)
    assert started == [lesson, lesson]
    run = Run(create_job(workspace.runs / "20260101-120000-alex", "train", {}).folder)
    put_state(run, "finished")
    assert judge_once(workspace, run) == judge_once(workspace, run)
    assert len(started) == 3


def test_a_run_of_a_lesson_is_judged_by_the_lesson(workspace: Workspace, started: list[Job]) -> None:
    run = Run(create_job(workspace.runs / "20260101-120000-alex", "train", {}).folder)
    assert not is_in_lesson(workspace, run)
    lesson = start_lesson_once(workspace, Persona(name="Alex"))
    assert not is_in_lesson(workspace, run)
    write_json(lesson.folder / "lesson.json", {"parts": {"train": {"state": "done", "folder": str(run.folder)}}})
    assert is_in_lesson(workspace, run)
    put_state(lesson, "finished")
    assert not is_in_lesson(workspace, run)


def test_a_run_at_work_is_neither_deleted_nor_resumed(workspace: Workspace, started: list[Job]) -> None:
    run = Run(create_job(workspace.runs / "r", "train", {"updates": 9}).folder)
    put_state(run, "running")
    with pytest.raises(StudioError, match="still running"):
        delete_run(run)
    with pytest.raises(StudioError, match="still running"):
        resume_run(workspace, run)
    put_state(run, "finished")
    with pytest.raises(StudioError, match="has finished"):
        resume_run(workspace, run)
    put_state(run, "stopped")
    resume_run(workspace, run)
    assert started == [run]


def test_deleting_frees_the_folder(workspace: Workspace) -> None:
    run = Run(create_job(workspace.runs / "r", "train", {"updates": 9}).folder)
    put_state(run, "stopped")
    (run.folder / "weights").write_bytes(b"0" * 1000)
    assert delete_run(run) > 1000
    assert not run.folder.exists()


def test_discarding_asks_the_process_to_stop_first(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(create_job(workspace.runs / "r", "train", {"updates": 9}).folder)
    put_state(run, "running")
    asked: list[Path] = []

    def stop(job: Job, grace: float) -> JobState:
        asked.append(job.folder)
        put_state(job, "stopped")
        return job.state()

    monkeypatch.setattr("core.train.steer.stop_job", stop)
    discard_run(run)
    assert asked == [run.folder]
    assert not run.folder.exists()
