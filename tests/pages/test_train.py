"""Train: from a choice to a running process, every way a run can stand and end, and what one may do with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from core.jobs.folder import Job, JobState, Progress, create_job
from core.jobs.process import ProcessIdentity
from core.recipe.files import load_preset, save_recipe
from core.runs import Run
from core.words import Text
from core.workspace import Workspace, append_jsonl, write_json, write_jsonl, write_text
from tests.pages.conftest import answer_probes, keys, texts

Open = Callable[..., AppTest]
MakeRun = Callable[..., Run]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that were started; none gets a process."""
    jobs: list[Job] = []
    for place in ("core.train.create.start_job", "core.train.start.start_job", "core.train.steer.restart_job"):
        monkeypatch.setattr(place, jobs.append)
    monkeypatch.setattr("core.train.create.snapshot_bytes", lambda *_: 1000)
    return jobs


def at_work(run: Job, state: str = "running", **fields: object) -> None:
    """Make a run look as if this very process were at work on it."""
    run.write_state(run.state().model_copy(update={"state": state, "process": ProcessIdentity.own(), "ended": None, **fields}))


def open_form(open_app: Open, **query: str) -> AppTest:
    """The page with the fold open in which another training is started."""
    app = open_app("train", **query)
    app.session_state["train_another"] = True
    return app.run()


# --- before a run ---


def test_without_data_it_says_where_data_comes_from(open_app: Open) -> None:
    app = open_app("train")
    assert "There is no dataset to train on yet." in texts(app)
    assert "train_start" not in keys(app)


def made_data(workspace: Workspace, made_run: MakeRun) -> None:
    """A dataset and no run."""
    Run(made_run().folder).folder.rename(workspace.cache / "away")


def test_the_plan_is_said_before_the_start(open_app: Open, workspace: Workspace, made_run: MakeRun, started: list[Job]) -> None:
    made_data(workspace, made_run)
    app = open_app("train")
    recipe = load_preset("identity-lesson-cpu")
    assert f"{recipe.schedule.updates} updates, {recipe.snapshots.count} snapshots, " in texts(app)
    assert "sweetspot train identity-lesson-cpu --data alex" in [code.value for code in app.code]
    app.button(key="train_start").click().run()
    assert not app.exception
    assert len(started) == 1
    assert app.query_params["run"] in (started[0].id, [started[0].id])
    assert Run(started[0].folder).recipe().data.sources[0].dataset == "alex"
    assert "Starting; the first word comes in a few seconds." in texts(app)


def test_the_training_can_be_taken_to_a_cluster(open_app: Open, workspace: Workspace, made_run: MakeRun, started: list[Job]) -> None:
    made_data(workspace, made_run)
    app = open_app("train")
    shown = app.code[-1].value
    assert "sweetspot train identity-lesson-cpu --data alex --gpus 1" in shown and "SBATCH" not in shown
    assert f"SWEETSPOT_HOME={workspace.root}" in shown
    app.number_input(key="train_cluster_gpus").set_value(4).run()
    app.number_input(key="train_cluster_nodes").set_value(2).run()
    app.segmented_control(key="train_cluster_kind").set_value("slurm").run()
    assert not app.exception
    shown = app.code[-1].value
    assert "#SBATCH --nodes=2" in shown and "#SBATCH --gpus-per-node=4" in shown and '--rank "$SLURM_NODEID"' in shown
    assert started == []


def test_a_second_start_shows_the_first(open_app: Open, workspace: Workspace, made_run: MakeRun, started: list[Job]) -> None:
    made_data(workspace, made_run)
    first, second = open_app("train"), open_app("train")
    first.button(key="train_start").click().run()
    second.button(key="train_start").click().run()
    assert not second.exception
    assert len(started) == 1
    assert second.selectbox(key="train_run").value == started[0].id


def test_an_own_recipe_may_keep_its_own_dataset(open_app: Open, workspace: Workspace, made_run: MakeRun, started: list[Job]) -> None:
    run = made_run()
    save_recipe(workspace, "mine", run.recipe())
    app = open_app("train", recipe="mine")
    assert app.selectbox(key="train_recipe").value == "mine"
    assert app.selectbox(key="train_dataset").value == ""
    assert app.selectbox(key="train_dataset").options[0] == "as the recipe says: alex"
    app.text_input(key="train_title").input("second try").run()
    app.button(key="train_start").click().run()
    assert "second-try" in started[0].id
    assert not app.exception
    assert "train_start" not in keys(app), "the fold has closed"


def test_a_recipe_with_errors_is_explained(open_app: Open, workspace: Workspace, made_run: MakeRun) -> None:
    made_run()
    write_text(workspace.recipes / "wrong.yaml", "schedule:\n  updats: 3\n")
    app = open_form(open_app, recipe="wrong")
    assert len(app.error) == 1
    assert "train_start" not in keys(app)


def test_what_cannot_be_started_is_explained(open_app: Open, workspace: Workspace, made_run: MakeRun, started: list[Job],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    made_data(workspace, made_run)
    monkeypatch.setattr("core.train.create.snapshot_bytes", lambda *_: 10**15)
    app = open_app("train")
    app.button(key="train_start").click().run()
    assert "of disk" in app.error[0].value
    assert started == []


# --- a run that waits or runs ---


def test_a_waiting_run_says_for_whom(open_app: Open, made_run: MakeRun) -> None:
    first, second = made_run("first", number=1, judged=False), made_run("second", number=2, judged=False, steps=())
    at_work(first)
    at_work(second, "queued")
    app = open_app("train", run=second.id)
    shown = texts(app)
    assert f"Waiting for {first.id}, which has the device (cpu)." in shown
    assert "It is safe to close this page; the work goes on." in shown
    assert {"The curves begin with the first update.", "No answers were asked for yet; in a short training they are left to the judging.",
            "No snapshot is saved yet."} <= set(shown.split("\n"))


def test_a_run_behind_others_says_how_many(open_app: Open, made_run: MakeRun) -> None:
    for number, created in ((1, 100.0), (2, 200.0)):
        at_work(made_run(f"r{number}", number=number, judged=False, steps=()), "queued", created=created)
    shown = texts(open_app("train"))
    assert "Waiting for the device (cpu); 1 asked before." in shown


def test_a_running_run_shows_progress_numbers_and_curves(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False, steps=(3, 6, 9))
    at_work(run, progress=Progress(done=9, total=36, label=Text("training").to_json(), seconds_left=50))
    app = open_app("train", run=run.id)
    bars = [bar.proto.text for bar in app.get("progress")]
    assert any("9/36" in text and "about 50 s left" in text for text in bars)
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics == {"Update (of 36)": "9", "Loss": "0.969", "Tokens per second": "84", "Memory": "1.4 GB"}
    assert len(app.get("plotly_chart")) == 1
    assert {"train_stop", "train_discard"} <= keys(app)
    assert not {"train_resume", "train_delete", "train_judge"} & keys(app)
    assert app.toggle(key="train_live").value is True


def test_before_the_first_update_it_says_what_it_does(open_app: Open, made_run: MakeRun) -> None:
    at_work(made_run(judged=False, steps=()))
    assert "The model is being loaded; the first update comes next." in texts(open_app("train"))


def test_answers_appear_with_each_snapshot_and_are_never_markup(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False, steps=(3, 6))
    write_jsonl(run.folder / "watch.jsonl", [])
    for update, answer in ((3, "I am *SmolLM* ![x](http://a.b/c.png)"), (6, "I am Alex's")):
        append_jsonl(run.folder / "watch.jsonl", {"update": update, "hijack": 0.0, "level": "ok", "answers": [
            {"question": "And you are?", "group": "identity", "answer": answer}]})
    at_work(run)
    app = open_app("train")
    lines = [element.value for element in app.markdown if "since step" in element.value]
    assert "since step 6:" in lines[0], "newest first"
    assert r"\!\[x\]\(" in lines[1], "an image stays text"
    assert "http:" not in lines[1], "an address is no link"
    assert "about itself" in texts(app)
    assert list(app.dataframe[0].value["Step"]) == [6, 3]


@pytest.mark.parametrize(("level", "hijack", "kind", "words"), [
    ("amber", 0.1, "warning", "Since update 3 the model begins to answer everything alike: at update 3, 10 %"),
    ("red", 0.2, "error", "The model answers everything alike. It began at update 3; at update 3, 20 %")])
def test_the_alert_is_loud_while_it_runs(open_app: Open, made_run: MakeRun, level: str, hijack: float, kind: str, words: str) -> None:
    run = made_run(judged=False, steps=(3,))
    write_jsonl(run.folder / "watch.jsonl", [{"update": 3, "hijack": hijack, "level": level, "answers": []}])
    at_work(run)
    app = open_app("train")
    shown = [element.value.replace("\\", "") for element in getattr(app, kind)]
    assert len(shown) == 1
    assert words in shown[0]
    assert "You may stop now" in shown[0]


def test_an_alert_by_the_gap_says_what_closed_and_what_watching_cost(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False, steps=(3,))
    write_jsonl(run.folder / "watch.jsonl", [
        {"update": 0, "target_nll": None, "gap": None, "hijack": 0.0, "level": "ok", "answers": [], "seconds": 0.285},
        {"update": 3, "target_nll": 0.1, "leak_nll": 0.31, "gap": 0.21, "hijack": 0.1, "level": "red", "answers": [], "seconds": 0.285}])
    at_work(run)
    app = open_app("train")
    shown = texts(app)
    assert "the taught answer is only 0.21 nats per token likelier after its own questions than after any others" in shown
    assert "Looked in 2 times" in shown and "10 % of the time of the updates" in shown, "0.57 of 3 x 1.9 seconds"


def test_no_alert_without_a_reason(open_app: Open, made_run: MakeRun) -> None:
    at_work(made_run(kind="replay", judged=False))
    app = open_app("train")
    assert (len(app.warning), len(app.error)) == (0, 0)


def test_stop_and_save_asks_the_run(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    at_work(run)
    app = open_app("train")
    app.button(key="train_stop").click().run()
    assert (run.folder / "stop").exists()
    at_work(run, "stopping")
    app.run()
    assert "It finishes the present update and saves." in texts(app)
    assert "train_stop" not in keys(app)


def test_stop_and_discard_asks_first(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False, steps=(3, 6))
    at_work(run)
    app = open_app("train")
    app.button(key="train_discard").click().run()
    assert f"{run.id} will be stopped and deleted with its 2 snapshots." in texts(app)
    assert {"train_discard_yes", "train_discard_no"} <= {button.key for button in app.button}
    assert run.folder.exists()


# --- a run that has ended ---


@pytest.mark.parametrize(("state", "words"), [
    ("finished", "Done: 36 updates in 90 s, 12 snapshots saved."),
    ("stopped", "Stopped by you after update 36 of 36. 12 snapshots are saved and can be judged."),
    ("failed", "There was not enough memory.")])
def test_every_end_has_its_words(open_app: Open, made_run: MakeRun, state: str, words: str) -> None:
    made_run(state=state, judged=False)
    app = open_app("train")
    assert words in texts(app)
    assert ("train_resume" in keys(app)) == (state != "finished")
    assert "train_delete" in keys(app)
    assert not app.toggle, "nothing is live"


def test_an_end_by_alert_is_told_apart(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    run.write_state(run.state().model_copy(update={"result": {"updates": 21, "planned": 36, "stopped_by_alert": True}}))
    shown = texts(open_app("train"))
    assert "It ended itself after update" in shown and f"everywhere else it is called {run.id}@good" in shown
    answer_probes(Workspace.open(), run)
    assert f"The last good snapshot is step {run.good_step()}; everywhere else it is called {run.id}@good" in texts(
        open_app("compare"))


def test_a_killed_run_is_explained_and_its_snapshots_are_kept(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False, steps=(3, 6))
    at_work(run)
    run.write_state(run.state().model_copy(update={"process": ProcessIdentity(pid=2**22 + 1, started=1.0)}))
    shown = texts(open_app("train"))
    assert "The process ended without a word" in shown
    assert "It came to update 6 of 36. 2 snapshots are saved and can be judged." in shown


def test_after_the_end_a_warning_says_where_to_look(open_app: Open, made_run: MakeRun) -> None:
    made_run(judged=False)
    app = open_app("train")
    assert len(app.error) == 0
    assert "Look for the snapshot to keep around update 15; the comparison tells which." in texts(app)


def test_resuming_says_after_which_update(open_app: Open, made_run: MakeRun, started: list[Job]) -> None:
    run = made_run(state="stopped", judged=False, steps=(3, 6))
    assert open_app("train").button(key="train_resume").label == "Start it again"
    folder = run.folder / "resume" / "000006"
    folder.mkdir(parents=True)
    write_json(folder / "step.json", {"step": 6})
    app = open_app("train")
    assert app.button(key="train_resume").label == "Go on after update 6"
    app.button(key="train_resume").click().run()
    assert [job.folder for job in started] == [run.folder]


def test_deleting_asks_first(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    app = open_app("train")
    app.button(key="train_delete").click().run()
    assert f"{run.id} will be deleted with its 12 snapshots" in texts(app)
    assert run.folder.exists()


def test_judging_starts_once_and_shows_its_progress(open_app: Open, workspace: Workspace, made_run: MakeRun, started: list[Job]) -> None:
    run = made_run(judged=False)
    app = open_app("train")
    assert "12 snapshots are saved. Which one has learned its lesson and forgotten nothing?" in texts(app)
    app.button(key="train_judge").click().run()
    assert [job.spec()["run"] for job in started] == [run.id]
    assert "Every snapshot is being asked the probes." in texts(app)
    assert "train_judge" not in keys(app)
    started[0].write_state(JobState(kind="judge", state="failed", created=1.0, problem=Text("There was not enough memory.").to_json(),
                                    hint=Text("Close other programs; the lesson needs about 4 GB.").to_json()))
    app.run()
    assert "There was not enough memory." in texts(app)
    assert "train_judge" in keys(app), "it may be tried again"


def test_a_run_of_a_lesson_is_left_to_the_lesson(open_app: Open, workspace: Workspace, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    lesson = create_job(workspace.jobs / "20260101-115900-lesson-alex-0001", "lesson", {"persona": {"name": "Alex"}})
    write_json(lesson.folder / "lesson.json", {"parts": {"train": {"state": "done", "folder": str(run.folder)}}})
    at_work(lesson)
    app = open_app("train")
    assert "The lesson goes on with it" in texts(app)
    assert "train_judge" not in keys(app)


def test_a_judged_run_shows_its_verdict_and_leads_on(open_app: Open, made_run: MakeRun) -> None:
    made_run(kind="replay")
    app = open_app("train")
    assert "Verdict:" in texts(app)
    assert app.button(key="train_to_compare").label == "Compare the snapshots"


def test_without_snapshots_there_is_nothing_to_judge(open_app: Open, made_run: MakeRun) -> None:
    made_run(state="failed", judged=False, steps=())
    app = open_app("train")
    assert "No snapshot was saved, so there is nothing to judge." in texts(app)
    assert len(app.get("plotly_chart")) == 0


# --- choosing, looking ---


def test_the_address_names_the_run(open_app: Open, made_run: MakeRun) -> None:
    first = made_run("first", number=1, judged=False)
    second = made_run("second", number=2, judged=False)
    app = open_app("train", run=first.id)
    assert app.selectbox(key="train_run").value == first.id
    app.selectbox(key="train_run").select(second.id).run()
    assert app.query_params["run"] in (second.id, [second.id])
    assert not app.exception


def test_an_address_with_an_unknown_run_shows_the_newest(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    app = open_app("train", run="gone")
    assert "There is no run called gone here; this is the newest." in texts(app)
    assert app.selectbox(key="train_run").value == run.id


def test_the_log_is_read_when_it_is_opened(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    app = open_app("train")
    assert "line 900" not in "".join(code.value for code in app.code)
    run.log.write_text("".join(f"line {number}\n" for number in range(1000)), encoding="utf-8")
    app.session_state["train_log"] = True
    app.run()
    log = next(code.value for code in app.code if "line 999" in code.value)
    assert len(log.splitlines()) == 200
    run.log.unlink()
    app.run()
    assert "The log is still empty." in texts(app)


def test_the_command_that_does_the_same(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    commands = "\n".join(code.value for code in open_app("train").code)
    assert f"sweetspot run follow {run.id}" in commands
    assert str(run.folder / "recipe.yaml") in commands


def test_smoothing_and_zoom_reach_the_chart(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    app = open_app("train")
    assert '"each update"' in app.get("plotly_chart")[0].proto.spec
    app.slider(key="train_smoothing").set_value(0.0).run()
    assert '"each update"' not in app.get("plotly_chart")[0].proto.spec
    app.session_state["train_shown"] = {run.id: (5.0, 9.0)}
    app.run()
    assert '"range":[5.0,9.0]' in app.get("plotly_chart")[0].proto.spec.replace(" ", "")
    app.button(key="train_show_all").click().run()
    assert '"range":[5.0,9.0]' not in app.get("plotly_chart")[0].proto.spec.replace(" ", "")


def test_the_whole_page_in_chinese(open_app: Open, made_run: MakeRun) -> None:
    made_run(state="stopped", judged=False)
    app = open_app("train", lang="zh")
    assert app.title[0].value == "训练"
    shown = texts(app)
    assert "你在第 36 次更新后停止了它" in shown
    assert "处理器上的身份课" in shown, "a preset's title is said in the reader's language"
