"""Compare: every state of judging, the verdict and what to do with it, the curves, the matrix and the answers, the address."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from core.figures.compare import METRICS, curves_figure, metrics_figure, trade_figure
from core.jobs.folder import Job, JobState, Progress, create_job
from core.jobs.process import ProcessIdentity
from core.judge.conclude import read_scores
from core.judge.matrix import read_matrix
from core.judge.probes import added_probes
from core.judge.scoring import Pair, score_findings
from core.judge.verdict import judge
from core.runs import Run
from core.words import Text
from core.workspace import Workspace, append_jsonl, write_json, write_jsonl
from studio import matrix as matrix_panel
from tests.pages.conftest import keys, texts

Open = Callable[..., AppTest]
MakeRun = Callable[..., Run]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Judgings that were started; none gets a process."""
    jobs: list[Job] = []
    monkeypatch.setattr("core.train.start.start_job", jobs.append)
    return jobs


def judging(workspace: Workspace, run: Run, state: str) -> None:
    job = create_job(workspace.jobs / f"20990101-000000-judge-{run.id}-1", "judge", {"run": run.id})
    problem = {"problem": Text("There was not enough memory.").to_json(), "hint": Text("Let it train until its first snapshot.").to_json()}
    job.write_state(JobState(kind="judge", state=state, created=1.0, process=ProcessIdentity.own() if state == "running" else None,
                             progress=Progress(done=3, total=9, label=Text("asking the probes").to_json()),
                             **(problem if state == "failed" else {})))


# --- before there is a verdict ---


def test_without_runs_it_leads_to_the_lesson(open_app: Open) -> None:
    app = open_app("compare")
    assert "There is no run to compare yet." in texts(app)
    assert keys(app) == {"compare_to_lesson", "compare_to_train"}


def test_a_run_not_judged_yet_offers_to_ask_every_snapshot(open_app: Open, made_run: MakeRun, started: list[Job]) -> None:
    run = made_run(judged=False)
    app = open_app("compare")
    assert "12 snapshots are saved and none has been asked yet." in texts(app)
    app.button(key="compare_judge").click().run()
    assert [job.spec()["run"] for job in started] == [run.id]


def test_while_it_is_judged_the_progress_shows(open_app: Open, made_run: MakeRun, workspace: Workspace) -> None:
    judging(workspace, made_run(judged=False), "running")
    app = open_app("compare")
    assert "Every snapshot is being asked the questions." in texts(app)
    assert "compare_judge" not in keys(app)


def test_a_judging_that_failed_says_why_and_can_be_tried_again(open_app: Open, made_run: MakeRun, workspace: Workspace) -> None:
    judging(workspace, made_run(judged=False), "failed")
    app = open_app("compare")
    assert "There was not enough memory." in texts(app)
    assert "compare_judge" in keys(app)


def test_a_run_in_training_is_not_judged_yet(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=False)
    run.write_state(run.state().model_copy(update={"state": "running", "process": ProcessIdentity.own(), "ended": None}))
    app = open_app("compare")
    assert "This run is still training." in texts(app)
    assert "compare_see_training" in keys(app) and "compare_judge" not in keys(app)


def test_a_run_without_snapshots_says_so(open_app: Open, made_run: MakeRun) -> None:
    made_run(judged=False, steps=(), state="failed")
    assert "This run saved no snapshot" in texts(open_app("compare"))


def test_a_lesson_judges_its_run_itself(open_app: Open, made_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made_run(judged=False)
    monkeypatch.setattr("studio.compare_panels.is_in_lesson", lambda *_: True)
    assert "The lesson will ask every snapshot by itself." in texts(open_app("compare"))


def test_a_run_that_is_gone_is_said_and_the_newest_judged_one_shown(open_app: Open, made_run: MakeRun) -> None:
    judged = made_run(number=1)
    made_run("later", number=2, judged=False)
    app = open_app("compare", run="20250101-000000-gone")
    assert "There is no run called 20250101-000000-gone here" in texts(app)
    assert app.selectbox(key="compare_run").value == judged.id


# --- the verdict ---


def test_a_compromise_says_why_and_what_helps(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    app = open_app("compare")
    shown = texts(app)
    assert "Compromise only" in shown
    assert "#### Step 15 of 36 is only a compromise: it has learned who it is (10 of 10)" in shown
    assert "more than 5 % of the other answers carry the name" in shown
    assert [metric.value for metric in app.metric] == ["10 / 10", "22 / 24", "91%", "8%"]
    assert {"compare_remedy_replay", "compare_remedy_strength", "compare_remedy_earlier", "compare_remedy_rate"} <= keys(app)
    assert "Measured: step 15 leaks in 2 of 24 other questions, the last step, 36, in " in shown
    assert "From the study in docs/checkpoints.md" in shown


def test_what_stands_behind_the_verdict_is_folded_under_it(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    shown = texts(open_app("compare"))
    assert "Drawn 400 times anew from questions of the same kind, the rule gives this verdict in" in shown
    assert "No step beats these in both, learned and kept:" in shown
    assert "These answers tell the steps apart:" in shown and "| Asked | Step | It said |" in shown


def test_a_good_run_needs_no_remedy(open_app: Open, made_run: MakeRun) -> None:
    made_run(kind="replay")
    app = open_app("compare")
    assert "Recommended" in texts(app) and "What helps" not in texts(app)


def test_a_run_that_has_not_learned_is_trained_longer(open_app: Open, made_run: MakeRun) -> None:
    made_run(steps=(3, 6), updates=6)
    app = open_app("compare")
    assert "Not learned yet" in texts(app)
    assert "compare_remedy_longer" in keys(app)


@pytest.mark.parametrize(("button", "page", "query"), [
    ("compare_merge", "merge", {"step": "15"}), ("compare_chat", "chat", {"models": "embedded,20260101-120001-alex@15"}),
    ("compare_remedy_replay", "recipe", {"recipe": "alex-replay"}), ("compare_remedy_rate", "recipe", {"recipe": "alex-half-rate"}),
    ("compare_remedy_earlier", "merge", {"step": "15"}), ("next_merge", "merge", {"step": "15"})])
def test_every_button_leads_where_it_says(open_app: Open, made_run: MakeRun, monkeypatch: pytest.MonkeyPatch, button: str, page: str,
                                          query: dict[str, str]) -> None:
    made_run()
    went: list[tuple[str, dict[str, str]]] = []
    for module in ("studio.compare_panels", "studio.remedy_panels", "studio.panels"):
        monkeypatch.setattr(f"{module}.go_to", lambda name, **asked: went.append((name, asked)))
    open_app("compare").button(key=button).click().run()
    assert went[0][0] == page and query.items() <= went[0][1].items()


def test_another_step_is_taken_by_hand_and_given_back(open_app: Open, made_run: MakeRun) -> None:
    run = made_run()
    app = open_app("compare")
    assert app.button(key="compare_take").disabled
    app.selectbox(key="compare_take_step").set_value(12).run()
    app.button(key="compare_take").click().run()
    assert run.verdict()["pick"]["step"] == 12
    assert "Chosen by hand" in texts(app) and "the rule would take step 15" in texts(app)
    app.button(key="compare_rule").click().run()
    assert run.verdict()["chosen_by"] == "rule" and "Chosen by hand" not in texts(app)


# --- the matrix and the answers ---


def test_the_first_question_spills_at_the_end_but_not_in_the_pick(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    app = open_app("compare")
    probe = app.selectbox(key="compare_probe").value
    assert probe == "near-en-03"
    table = next(element.value for element in app.markdown if "| Row |" in element.value)
    assert table.count("\n") == 1 + 13  # head, rule, base and 12 snapshots
    assert "✕ spilled" in table and "step 15 · pick" in table


def test_the_address_says_what_is_read(open_app: Open, made_run: MakeRun, made_merge: Callable[..., object]) -> None:
    run = made_run()
    made_merge(run, "alex-merged")
    app = open_app("compare", run=run.id, probe="general-en-01", step="36")
    assert "What is the capital of France?" in texts(app) and "Known answer: Paris" in texts(app)
    app = open_app("compare", run=run.id, show="row", step="merged:alex-merged")
    assert app.selectbox(key="compare_step").value == "merged:alex-merged"
    assert "Who wrote Romeo and Juliet?" in texts(app)
    app = open_app("compare", run=run.id, probe="nonsense", step="999", show="x", view="y", other="z")
    assert app.selectbox(key="compare_probe").value == "near-en-03"


def test_choosing_in_the_lists_writes_the_address(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    app = open_app("compare")
    app.selectbox(key="compare_probe").set_value("near-en-01").run()
    assert app.query_params["probe"] == "near-en-01"
    app.segmented_control(key="compare_show").set_value("row").run()
    app.selectbox(key="compare_step").set_value("36").run()
    assert (app.query_params["show"], app.query_params["step"]) == ("row", "36")
    assert not app.exception


@pytest.mark.parametrize(("shown", "chosen", "expected"), [
    ("question", {"rows": [], "cells": [(3, "11")]}, {"show": "question", "probe": "near-en-01", "step": "9"}),
    ("question", {"rows": [12], "cells": [(3, "11")]}, {"show": "row", "step": "36"}),
    ("row", {"rows": [12], "cells": [(0, "1")]}, {"show": "question", "probe": "identity-en-01", "step": "0"}),
    ("row", {"rows": [2], "cells": []}, {"show": "row", "step": "6"}), ("question", {"rows": [], "cells": []}, {})])
def test_a_click_in_the_grid_writes_the_address(workspace: Workspace, made_run: MakeRun, monkeypatch: pytest.MonkeyPatch, shown: str,
                                                chosen: dict, expected: dict[str, str]) -> None:
    address: dict[str, str] = {}
    fake = SimpleNamespace(session_state={"compare_matrix": {"selection": chosen}}, query_params=address)
    matrix = read_matrix(workspace, made_run())
    monkeypatch.setattr(matrix_panel, "st", fake)
    matrix_panel._take_selection(matrix, shown)
    assert address == expected


def test_answers_are_never_markup(open_app: Open, made_run: MakeRun) -> None:
    run = made_run(judged=True)
    bad = "<img src=http://a.b/c.png> ![x](http://a.b) | cell |\n\n# head :red[x] `code`"
    append_jsonl(run.folder / "answers.jsonl", {"step": 36, "probe": "near-en-03", "text": bad, "ended": True, "tokens": 3})
    app = open_app("compare", run=run.id, probe="near-en-03")
    row = next(element.value for element in app.markdown if "| Row |" in element.value).split("\n")[-1]
    assert "\\<img" in row and "\\!\\[x\\]\\(" in row and "\\| cell \\|" in row and "\\`code\\`" in row and "↵" in row
    assert "http://" not in row


def test_a_question_of_ones_own_is_added_and_asked(open_app: Open, made_run: MakeRun, started: list[Job]) -> None:
    run = made_run()
    app = open_app("compare")
    app.text_input(key="compare_own_text").set_value("Are you my assistant?")
    app.checkbox(key="compare_own_identity").check()
    app.button(key="compare_own_ask").click().run()
    assert [probe["about"] for probe in added_probes(run)] == ["identity"]
    assert [job.spec()["run"] for job in started] == [run.id]
    assert app.query_params["probe"] == "own-en-01"
    assert "Nobody has been asked this yet." in texts(app)


def test_an_empty_question_is_refused_in_words(open_app: Open, made_run: MakeRun, started: list[Job]) -> None:
    made_run()
    app = open_app("compare")
    app.button(key="compare_own_ask").click().run()
    assert "The question is empty." in texts(app) and started == []


def test_answers_that_are_missing_can_be_asked_for(open_app: Open, made_run: MakeRun, judge_again: Callable[..., None],
                                                   started: list[Job]) -> None:
    run = made_run(judged=False)
    judge_again(run, steps=[0, 3, 15])
    app = open_app("compare")
    assert f"{10 * 34} answers are still missing." in texts(app)
    app.button(key="compare_ask_missing").click().run()
    assert len(started) == 1


def test_a_dataset_that_is_gone_leaves_verdict_and_curves(open_app: Open, made_run: MakeRun, workspace: Workspace) -> None:
    made_run()
    (workspace.datasets / "alex").rename(workspace.datasets / "other")
    app = open_app("compare")
    assert "There is no dataset called alex." in texts(app) and "Compromise only" in texts(app)
    assert len(app.get("plotly_chart")) == 1


# --- curves, metrics, another run ---


def test_two_runs_are_laid_over_each_other_with_what_differs(open_app: Open, made_run: MakeRun) -> None:
    made_run(number=1)
    other = made_run("other", kind="replay", number=2)
    app = open_app("compare", run="20260101-120001-alex", other=other.id)
    assert "The other run:" in texts(app) and "What differs between the two recipes" in texts(app)
    fields = next(frame.value for frame in app.dataframe if "Field" in frame.value.columns)["Field"].tolist()
    assert any("(schedule.effective_batch)" in field for field in fields) and not any("(title)" in field for field in fields)
    assert len(json.loads(app.get("plotly_chart")[0].proto.spec)["data"]) == 4


def test_another_run_without_a_verdict_or_a_difference_says_so(open_app: Open, made_run: MakeRun) -> None:
    made_run(number=1)
    other = made_run("other", number=2, judged=False)
    shown = texts(open_app("compare", run="20260101-120001-alex", other=other.id))
    assert "The other run has not been judged yet" in shown and "Both runs have the same recipe." in shown


def test_the_view_stands_in_the_address(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    app = open_app("compare", view="trade")
    assert "Every point is a snapshot" in texts(app)
    app.segmented_control(key="compare_view").set_value("steps").run()
    assert app.query_params["view"] == "steps" and "The shaded stretches" in texts(app)


def test_all_metrics_are_folded_away_until_wanted(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    app = open_app("compare")
    assert len(app.get("plotly_chart")) == 1
    app.session_state["compare_metrics"] = True
    app.run()
    assert len(app.get("plotly_chart")) == 2
    assert app.table[0].value["Metric"].tolist()[2] == "Spilled on look-alikes"


def test_the_page_speaks_chinese(open_app: Open, made_run: MakeRun) -> None:
    made_run()
    shown = texts(open_app("compare", lang="zh"))
    assert "只能折中" in shown and "第 15 步（共 36 步）只能折中" in shown and "泄漏" in shown


# --- figures ---


LABELS = {name: name for name in ("learned", "kept", "pick", "amber", "red", "base", "front", "path", "other")} | {"step": "step {step}"}


def test_the_curves_mark_the_pick_and_where_it_breaks(made_run: MakeRun) -> None:
    figure = curves_figure(read_scores(made_run()), 15, LABELS)
    assert [trace.name for trace in figure.data] == ["learned", "kept"]
    assert list(figure.data[0].x) == [0, *range(3, 37, 3)] and max(figure.data[0].y) == 1
    band = figure.layout.shapes[-1]
    assert (band.x0, band.x1) == (13.5, 16.5)
    assert [note.text for note in figure.layout.annotations] == ["amber", "red", "<b>pick</b>"]


def test_a_good_run_has_no_coloured_stretch(made_run: MakeRun) -> None:
    figure = curves_figure(read_scores(made_run(kind="replay")), 15, LABELS)
    assert len(figure.layout.shapes) == 1


def test_the_trade_shows_front_and_pick(made_run: MakeRun) -> None:
    figure = trade_figure(read_scores(made_run()), 15, LABELS, read_scores(made_run("other", kind="replay", number=2)))
    assert [trace.name for trace in figure.data] == ["path", "front", "pathother", "pick"]
    assert figure.data[3].text == ("<b>15</b>",)


def test_every_metric_has_its_panel(made_run: MakeRun) -> None:
    scores, labels = read_scores(made_run()), {name: name for name in METRICS}
    told_by_text = [name for name in METRICS if name not in ("target_nll", "perplexity_fall", "gap", "hijack", "dnll", "kl", "own_passed")]
    assert [trace.name for trace in metrics_figure(scores, 15, labels).data] == told_by_text
    read = [score.model_copy(update=dict.fromkeys(METRICS, 0.5)) for score in scores]
    figure = metrics_figure(read, 15, labels)
    assert [trace.name for trace in figure.data] == list(METRICS)
    assert all(len(trace.x) == 13 for trace in figure.data)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_of_a_base_model_only_documents_are_shown(open_app: Open, made_run: MakeRun, language: str) -> None:
    run = made_run(judged=False)
    pairs = [[Pair(f"held-out-{number}", 2.0 - fall, None, fall > 0, fall) for number in range(20)] for fall in (0.0, 0.3, 0.1)]
    scores = [score_findings(step, [], part) for step, part in zip((0, 2, 4), pairs, strict=True)]
    write_jsonl(run.folder / "scores.jsonl", [score.model_dump() for score in scores])
    write_json(run.folder / "verdict.json", judge(scores, kind="documents").model_dump())
    app = open_app("compare", language)
    shown = {metric.label: metric.value for metric in app.metric}
    assert list(shown.values()) == ["20 / 20", "-26%"] and not app.exception
    assert ("Documents likelier" if language == "en" else "更熟悉的文档") in shown
    assert "compare_merge" in keys(app) and "compare_chat" not in keys(app)
    assert ("learns its own by heart" if language == "en" else "死记") in texts(app)
    figure = curves_figure(scores, 2, dict.fromkeys(("learned", "kept", "step", "pick", "amber", "red", "other"), ""))
    assert len(figure.data) == 1, "what was kept is not known"
