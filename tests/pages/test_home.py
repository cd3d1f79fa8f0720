"""Home: one question on a first visit, afterwards the lesson as it goes, the recent runs, and the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.errors import StudioError
from core.jobs.folder import Job, JobState, Progress, create_job
from core.jobs.process import ProcessIdentity
from core.lesson import PARTS
from core.machine import Finding
from core.words import Text
from core.workspace import Workspace, write_json
from tests.pages.conftest import texts

Open = Callable[..., AppTest]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    jobs: list[Job] = []
    monkeypatch.setattr("core.lesson.start_job", jobs.append)
    monkeypatch.setattr("core.lesson.restart_job", jobs.append)
    return jobs


def made_lesson(workspace: Workspace, state: str, parts: dict | None = None, **fields: object) -> Job:
    """A lesson's folder: `parts` as they are known, the others waiting."""
    job = create_job(workspace.jobs / "20260101-115900-lesson-alex-0001", "lesson",
                     {"persona": {"name": "Alex", "languages": ["en"]}, "remedy": False})
    write_json(job.folder / "lesson.json", {"parts": {part: {"state": "waiting"} | (parts or {}).get(part, {}) for part in PARTS}})
    process = ProcessIdentity.own() if state in ("running", "queued", "stopping") else None
    job.write_state(JobState(kind="lesson", state=state, created=job.state().created, process=process, **fields))
    return job


def test_a_first_visit_asks_one_question(open_app: Open) -> None:
    app = open_app("home")
    assert app.title[0].value == "Teach a small model its name"
    assert "What shall your assistant be called?" in texts(app)
    assert [button.label for button in app.main.button] == ["Start the lesson"]
    assert "Recent runs" not in texts(app)
    assert "processor cores" in texts(app), "what this machine can do"


def test_the_button_starts_the_lesson_in_the_page_s_language(open_app: Open, workspace: Workspace, started: list[Job]) -> None:
    app = open_app("home", lang="zh")
    app.text_input(key="home_name").input(" 小明 ")
    app.button(key="home_start").click().run()
    assert not app.exception
    assert len(started) == 1
    spec = started[0].spec()
    assert (spec["persona"]["name"], spec["persona"]["languages"], spec["remedy"]) == ("小明", ["zh"], False)
    assert "小明 的一课" in texts(app), "the page shows the lesson at once"


def test_language_author_and_remedy_are_in_the_fold(open_app: Open, started: list[Job]) -> None:
    app = open_app("home")
    app.text_input(key="home_name").input("Alex")
    app.text_input(key="home_author").input("Bo")
    app.checkbox(key="home_remedy").check()
    app.button(key="home_start").click().run()
    spec = started[0].spec()
    assert (spec["persona"]["author"], spec["remedy"]) == ("Bo", True)
    assert "Train with the model's own answers mixed in" in texts(app)


@pytest.mark.parametrize("name", ["", "   ", "<b>Alex</b>"])
def test_a_name_that_cannot_be_one_is_explained(open_app: Open, started: list[Job], name: str) -> None:
    app = open_app("home")
    app.text_input(key="home_name").input(name)
    app.button(key="home_start").click().run()
    assert not app.exception
    assert len(app.error) == 1
    assert started == []


def test_a_lesson_under_way_shows_its_part_and_may_be_stopped(open_app: Open, workspace: Workspace) -> None:
    run = create_job(workspace.runs / "20260101-120000-alex", "train", {"updates": 24})
    run.write_state(run.state().model_copy(update={"state": "running", "process": ProcessIdentity.own()}))
    progress = Progress(done=9, total=24, label=Text("training").to_json(), seconds_left=130)
    lesson = made_lesson(workspace, "running", {
        "prepare": {"state": "done", "seconds": 18.0},
        "data": {"state": "done", "seconds": 3.0, "dataset": "alex", "rows": {"identity": 96}, "probes": 34},
        "train": {"state": "running", "folder": str(run.folder)}}, progress=progress)
    app = open_app("home")
    shown = texts(app)
    assert "The lesson for Alex" in shown
    assert "alex: 96 rows to learn from, 34 probes to judge by" in shown
    assert "under way" in shown
    assert "It is safe to close this page" in shown
    bars = [bar.proto.text for bar in app.get("progress")]
    assert any("9/24" in text and "about 2 min left" in text for text in bars)
    app.button(key="home_stop").click().run()
    assert (lesson.folder / "stop").exists()


def test_a_lesson_that_waits_says_for_whom(open_app: Open, workspace: Workspace) -> None:
    other = create_job(workspace.runs / "20260101-110000-other", "train", {"updates": 24})
    other.write_state(other.state().model_copy(update={"state": "running", "process": ProcessIdentity.own()}))
    child = create_job(workspace.jobs / "20260101-120000-replay-alex-0001", "replay", {})
    child.write_state(child.state().model_copy(update={"process": ProcessIdentity.own()}))
    made_lesson(workspace, "running", {"data": {"state": "running", "folder": str(child.folder)}})
    assert "Waiting for 20260101-110000-other, which has the device (cpu)." in texts(open_app("home"))


@pytest.mark.parametrize(("state", "word"), [("stopped", "stopped by you"), ("failed", "failed")])
def test_a_lesson_that_ended_early_goes_on_with_one_click(open_app: Open, workspace: Workspace, started: list[Job], state: str,
                                                          word: str) -> None:
    problem = {"problem": Text("There was not enough memory.").to_json(), "hint": Text("Close other programs; the lesson needs about 4 GB.")
               .to_json()} if state == "failed" else {}
    lesson = made_lesson(workspace, state, {"prepare": {"state": "done", "seconds": 1.0}, "data": {"state": "running"}}, **problem)
    app = open_app("home")
    assert word in texts(app)
    assert ("There was not enough memory." in texts(app)) == (state == "failed")
    app.button(key="home_resume").click().run()
    assert started == [lesson]


def finished_parts(run: str) -> dict:
    return {
        "prepare": {"state": "done", "seconds": 18.0},
        "data": {"state": "done", "seconds": 3.0, "dataset": "alex", "rows": {"identity": 96, "near": 3}, "probes": 34},
        "train": {"state": "done", "seconds": 50.0, "folder": f"/gone/{run}", "run": run},
        "judge": {"state": "done", "seconds": 40.0, "verdict": "recommended", "step": 15},
        "merge": {"state": "done", "seconds": 9.0, "model": "alex-1"},
        "ask": {"state": "done", "seconds": 9.0, "answers": {"questions": ["a", "b"], "answers": []}}}


def test_a_finished_lesson_stays_and_leads_to_every_page(open_app: Open, workspace: Workspace, made_run: Callable) -> None:
    run = made_run()
    made_lesson(workspace, "finished", finished_parts(run.id))
    app = open_app("home")
    shown = texts(app)
    for sentence in ("Every page is filled with it now", "12 snapshots saved", "Step 15 is recommended.", "Merged as alex-1",
                     "2 questions, asked of every model", "99 rows to learn from"):
        assert sentence in shown
    assert "What shall your assistant be called?" in shown, "another one is a fold away"
    assert app.button(key="home_start").label == "Start the lesson"


@pytest.mark.parametrize(("verdict", "sentence"), [
    ("compromise", "Step 15 is only a compromise."), ("not_learned", "Not learned yet; step 15 is nearest.")])
def test_a_lesson_without_a_clean_step_says_so(open_app: Open, workspace: Workspace, verdict: str, sentence: str) -> None:
    parts = finished_parts("deleted")
    parts["judge"]["verdict"] = verdict
    made_lesson(workspace, "finished", parts)
    shown = texts(open_app("home"))
    assert sentence in shown
    assert "This run was deleted." in shown
    assert "No run yet" in shown


def test_recent_runs_show_state_verdict_and_pick(open_app: Open, made_run: Callable) -> None:
    made_run("judged", kind="replay", number=1)
    made_run("open", number=2, judged=False, state="stopped")
    made_run("broken", number=3, judged=False, state="failed")
    shown = texts(open_app("home"))
    for words in ("Recent runs", "judged", "recommended", "stopped", "not judged yet", "failed"):
        assert words in shown


def test_many_runs_are_one_link_away(open_app: Open, made_run: Callable) -> None:
    for number in range(8):
        made_run(f"r{number}", number=number, judged=False, steps=(3,))
    app = open_app("home")
    assert "r7" in texts(app)
    assert "r1" not in texts(app)
    assert "All 8 runs" in [link.proto.label for link in app.get("page_link")]


def test_what_is_wrong_with_the_machine_comes_with_its_way_out(open_app: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Finding(level="error", text=Text("missing packages: {names}", names="torch").to_json(),
                      fix=Text("Run `make setup`.").to_json())
    monkeypatch.setattr("studio.home_panels.diagnose", lambda _: [trouble])
    shown = texts(open_app("home"))
    assert "missing packages: torch" in shown
    assert "Run `make setup`." in shown


def test_the_command_that_does_the_same(open_app: Open) -> None:
    assert "sweetspot lesson --name Alex --lang zh" in [code.value for code in open_app("home", lang="zh").code]


def test_a_workspace_that_cannot_be_written_is_said(open_app: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudioError):
        Workspace.open("/proc/nothing")
    monkeypatch.setenv("SWEETSPOT_HOME", "/proc/nothing")
    app = AppTest.from_file(str(ROOT / "studio" / "app.py"), default_timeout=20).run()
    assert not app.exception
    assert "cannot be written" in texts(app)


def test_housekeeping_shows_what_goes_and_puts_it_back(open_app: Open, workspace: Workspace) -> None:
    (workspace.datasets / ".half.999999999-0123abcd.partial").mkdir()
    app = open_app("home")
    assert "Nothing here can be spared." not in texts(app), "the disk is looked at only when somebody asks"
    app.toggle(key="home_look_at_disk").set_value(True).run()
    assert "datasets/.half.999999999-0123abcd.partial" in texts(app) and "The trash is empty." in texts(app)
    app.button(key="home_prune").click().run()
    assert not app.exception and "The trash holds 1 things" in texts(app)
    restore = next(button for button in app.button if str(button.key).startswith("home_restore_"))
    restore.click().run()
    assert (workspace.datasets / ".half.999999999-0123abcd.partial").is_dir() and "The trash is empty." in texts(app)
    app.button(key="home_prune").click().run()
    assert app.button(key="home_trash_empty").disabled
    app.checkbox(key="home_trash_sure").check().run()
    app.button(key="home_trash_empty").click().run()
    assert not app.exception and not list((workspace.root / "trash").iterdir())
