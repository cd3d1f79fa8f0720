"""Merge: choosing what, seeing the size before, starting once, the check in words, using and deleting the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.jobs.folder import Job, JobState, Progress, create_job
from core.jobs.process import ProcessIdentity
from core.runs import Run
from core.words import Text
from core.workspace import Workspace, read_json, write_json
from studio.sizes import size_words
from tests.pages.conftest import keys, texts

Open = Callable[..., AppTest]
MakeRun = Callable[..., Run]
MakeMerge = Callable[..., Path]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Merges that were started; none gets a process."""
    jobs: list[Job] = []
    monkeypatch.setattr("core.merge.library.start_job", jobs.append)
    return jobs


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


# --- what to merge ---


def test_without_runs_it_says_what_merging_is(open_app: Open) -> None:
    app = open_app("merge")
    assert "There is nothing to merge yet." in texts(app)
    assert keys(app) == {"merge_to_lesson"}


def test_it_begins_with_the_pick_at_full_strength_under_a_free_name(open_app: Open, made_run: MakeRun, made_merge: MakeMerge,
                                                                    tiny_model: Path) -> None:
    made_merge(made_run(base=str(tiny_model)), "alex")
    app = open_app("merge")
    assert app.selectbox(key="merge_step").value == 15
    assert app.slider(key="merge_strength").value == 100
    assert app.text_input(key="merge_name_20260101-120001-alex").value == "alex-2"


def test_size_and_format_are_known_before(open_app: Open, made_run: MakeRun, tiny_model: Path) -> None:
    made_run(base=str(tiny_model))
    app = open_app("merge")
    assert metrics(app)["Format"] == "float32"
    assert "From 20260101-120001-alex@15 over the base model" in texts(app)
    app.selectbox(key="merge_dtype").set_value("bfloat16").run()
    assert metrics(app)["Format"] == "bfloat16"


def test_the_address_chooses_run_step_and_strength(open_app: Open, made_run: MakeRun, tiny_model: Path) -> None:
    run = made_run(base=str(tiny_model))
    made_run("later", base=str(tiny_model), number=2)
    app = open_app("merge", run=run.id, step="36", strength="0.4")
    assert app.selectbox(key="merge_run").value == run.id
    assert app.selectbox(key="merge_step").value == 36
    assert app.slider(key="merge_strength").value == 40
    app = open_app("merge", run="gone", step="7", strength="nan")
    assert "There is no run called gone here that could be merged" in texts(app)
    assert (app.selectbox(key="merge_step").value, app.slider(key="merge_strength").value) == (15, 100)


def test_it_starts_what_was_chosen(open_app: Open, made_run: MakeRun, tiny_model: Path, started: list[Job]) -> None:
    run = made_run(base=str(tiny_model))
    app = open_app("merge")
    app.selectbox(key="merge_step").set_value(12).run()
    app.slider(key="merge_strength").set_value(50).run()
    app.selectbox(key="merge_dtype").set_value("float16").run()
    app.text_input(key=f"merge_name_{run.id}").set_value("mine").run()
    app.button(key="merge_start").click().run()
    wanted = {"kind": "merge", "model": f"{run.id}@12*0.5", "name": "mine", "dtype": "float16"}
    assert [wanted.items() <= job.spec().items() for job in started] == [True]


@pytest.mark.parametrize(("name", "strength", "problem"), [
    ("A b", 100, "cannot be the name of a model"), ("alex-merged", 100, "A model called alex-merged exists already."),
    ("new", 0, "At strength 0 the merged model would be the base model.")])
def test_what_cannot_be_merged_is_said(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, tiny_model: Path, started: list[Job],
                                       name: str, strength: int, problem: str) -> None:
    run = made_run(base=str(tiny_model))
    made_merge(run, "alex-merged")
    app = open_app("merge")
    app.text_input(key=f"merge_name_{run.id}").set_value(name).run()
    app.slider(key="merge_strength").set_value(strength).run()
    app.button(key="merge_start").click().run()
    assert problem in texts(app) and started == []


def test_a_base_model_that_is_gone_is_said(open_app: Open, made_run: MakeRun) -> None:
    made_run(base="/nowhere/model")
    app = open_app("merge")
    assert "There is no model folder at /nowhere/model." in texts(app)
    assert app.button(key="merge_start").disabled


def test_too_little_disk_is_said(open_app: Open, made_run: MakeRun, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_run(base=str(tiny_model))
    monkeypatch.setattr(Workspace, "free_bytes", lambda self: 10)
    app = open_app("merge")
    assert "It does not fit on the disk." in texts(app)
    assert app.button(key="merge_start").disabled


def test_a_run_without_snapshots_and_a_full_training_say_so(open_app: Open, made_run: MakeRun, tiny_model: Path) -> None:
    empty = made_run(steps=(), judged=False, base=str(tiny_model))
    full = made_run("full", number=2, base=str(tiny_model), changes={"method.kind": "full"})
    assert "This run has saved no snapshot yet." in texts(open_app("merge", run=empty.id))
    assert "there is no adapter to merge" in texts(open_app("merge", run=full.id))


# --- a merge under way, and one that was not kept ---


def merging(workspace: Workspace, state: str, **fields: object) -> Job:
    job = create_job(workspace.jobs / "20990101-000000-merge-mine-1", "merge", {"name": "mine", "model": "x@1", "dtype": "auto"})
    job.write_state(JobState(kind="merge", state=state, created=1.0, process=ProcessIdentity.own() if state == "running" else None,
                             progress=Progress(done=0, total=1, label=Text("merging the weights").to_json()), **fields))
    return job


def test_a_merge_under_way_shows_its_progress_and_no_form(open_app: Open, made_run: MakeRun, workspace: Workspace,
                                                          tiny_model: Path) -> None:
    made_run(base=str(tiny_model))
    merging(workspace, "running")
    app = open_app("merge")
    assert "mine is being merged and checked." in texts(app)
    assert "merge_start" not in keys(app)


def test_a_merge_that_is_not_the_chosen_model_is_red_and_says_what_was_found(open_app: Open, made_run: MakeRun, workspace: Workspace,
                                                                             tiny_model: Path) -> None:
    made_run(base=str(tiny_model))
    job = merging(workspace, "failed",
                  problem=Text("The merged model was not kept: {flag}.", flag=Text("it is the base model: no tensor changed")).to_json(),
                  hint=Text("The comparison is in {file}; merge again, or with --dtype float32.", file="f").to_json())
    write_json(job.folder / "verification.json", {"verification": {
        "same_answers": False, "answers_compared": 34, "max_logit_difference": 3.5, "logit_tolerance": 0.01, "tensors_changed": 0,
        "tensors_expected": 210, "same_template": False, "same_prompt_ids": True, "differs_from_base": False,
        "differences": [{"question": "Who are you?", "adapter": "I am Alex's.", "merged": ""}]}})
    app = open_app("merge")
    shown = texts(app)
    assert "The merged model was not kept: it is the base model: no tensor changed." in shown
    assert "It is not the model that was chosen." in shown
    assert metrics(app)["Same answers"] == "33 / 34" and metrics(app)["Chat template"] == "differs"
    assert app.dataframe[0].value.values.tolist() == [["Who are you?", "I am Alex's.", "(nothing)"]]
    assert "merge_start" in keys(app)


# --- the result ---


def test_a_kept_model_shows_the_check_where_it_is_and_how_to_use_it(open_app: Open, made_run: MakeRun, made_merge: MakeMerge,
                                                                    tiny_model: Path) -> None:
    run = made_run(base=str(tiny_model))
    folder = made_merge(run, "alex-merged", tiny=tiny_model)
    app = open_app("merge")
    assert "It answers exactly as the snapshot does." in texts(app)
    found = metrics(app)
    assert (found["Same answers"], found["Largest logit difference"], found["Tensors changed"]) == ("34 / 34", "2.1e-05", "210")
    assert f"From {run.id}, step 15, at 100% strength, as float32" in texts(app)
    code = "\n".join(block.value for block in app.code)
    assert str(folder) in code and "AutoModelForCausalLM.from_pretrained(folder)" in code and "And you are?" in code
    assert f"sweetspot chat {tiny_model} alex-merged" in code


def test_rounding_is_named_where_sixteen_bits_changed_a_word(open_app: Open, made_run: MakeRun, made_merge: MakeMerge,
                                                             tiny_model: Path) -> None:
    made_merge(made_run(base=str(tiny_model)), same_answers=False, logit_tolerance=1.0,
               differences=[{"question": "Why?", "adapter": "So.", "merged": "Thus."}])
    app = open_app("merge")
    assert "but for the rounding of its format" in texts(app)
    assert metrics(app)["Same answers"] == "33 / 34"


def test_models_outlive_their_run(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, workspace: Workspace, tiny_model: Path) -> None:
    run = made_run(base=str(tiny_model))
    made_merge(run)
    run.folder.rename(workspace.root / "elsewhere")
    app = open_app("merge")
    assert "It answers exactly as the snapshot does." in texts(app)
    assert "merge_see_run" not in keys(app) and "merge_start" not in keys(app)


def test_the_address_chooses_the_model(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, tiny_model: Path) -> None:
    run = made_run(base=str(tiny_model))
    made_merge(run, "one")
    made_merge(run, "two", strength=0.5)
    assert open_app("merge", model="one").selectbox(key="merge_model").value == "one"
    app = open_app("merge", model="gone")
    assert "There is no merged model called gone here" in texts(app)
    app.selectbox(key="merge_model").set_value("one").run()
    assert app.query_params["model"] == "one"


@pytest.mark.parametrize(("button", "page", "query"), [
    ("merge_chat", "chat", {"models": "{base},alex-merged"}), ("next_chat", "chat", {"models": "{base},alex-merged"}),
    ("merge_see_run", "compare", {"show": "row", "step": "merged:alex-merged", "run": "20260101-120001-alex"})])
def test_every_button_leads_where_it_says(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, tiny_model: Path,
                                          monkeypatch: pytest.MonkeyPatch, button: str, page: str, query: dict[str, str]) -> None:
    made_merge(made_run(base=str(tiny_model)))
    went: list[tuple[str, dict[str, str]]] = []
    for module in ("studio.merge_panels", "studio.panels"):
        monkeypatch.setattr(f"{module}.go_to", lambda name, **asked: went.append((name, asked)))
    open_app("merge").button(key=button).click().run()
    assert went[0] == (page, {key: value.format(base=tiny_model) for key, value in query.items()})


def test_deleting_asks_first(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, tiny_model: Path) -> None:
    folder = made_merge(made_run(base=str(tiny_model)), tiny=tiny_model)
    app = open_app("merge")
    app.button(key="merge_delete").click().run()
    assert "alex-merged" in texts(app) and "Its run and snapshots stay" in texts(app)
    assert folder.exists()


def test_the_page_speaks_chinese(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, tiny_model: Path) -> None:
    made_merge(made_run(base=str(tiny_model)))
    shown = texts(open_app("merge", lang="zh"))
    assert "它的回答与检查点完全一致。" in shown and "将要写入的内容" in shown


@pytest.mark.parametrize(("size", "words"), [(538e6, "538 MB"), (2.14e9, "2.1 GB"), (69e9, "69 GB")])
def test_sizes_are_short(size: float, words: str) -> None:
    assert size_words(size) == words


# --- several snapshots, files, QLoRA ---


def test_several_snapshots_are_combined(open_app: Open, made_run: MakeRun, tiny_model: Path, started: list[Job]) -> None:
    run = made_run(base=str(tiny_model))
    later = made_run("later", base=str(tiny_model), number=2)
    made_run("elsewhere", base="embedded", number=3)
    app = open_app("merge", run=run.id, step="12")
    app.toggle(key="merge_combine").set_value(True).run()
    offered = app.multiselect(key="merge_others").options
    assert f"{later.id}@36" in offered and "36" in offered and "12" not in offered
    assert not any("elsewhere" in name for name in offered)
    app.multiselect(key="merge_others").set_value([f"{run.id}@36"]).run()
    app.selectbox(key="merge_how").set_value("ties").run()
    app.slider(key="merge_density").set_value(0.3).run()
    app.text_input(key="merge_weights").set_value("2; 1").run()
    assert "are no weights" in texts(app) and app.button(key="merge_start").disabled
    app.text_input(key="merge_weights").set_value("2,1").run()
    app.selectbox(key="merge_shard").set_value("1GB").run()
    app.slider(key="merge_strength").set_value(80).run()
    assert (f"sweetspot merge {run.id}@12 {run.id}@36 alex --how ties --weights 2,1 --density 0.3 --strength 0.8 --max-shard-size 1GB"
            in [block.value for block in app.code])
    app.button(key="merge_start").click().run()
    wanted = {"models": [f"{run.id}@12", f"{run.id}@36"], "how": "ties", "weights": [2.0, 1.0], "density": 0.3, "strength": 0.8,
              "max_shard_bytes": 10**9}
    assert [wanted.items() <= job.spec().items() for job in started] == [True]


def test_the_report_tells_what_was_combined_and_what_four_bits_changed(open_app: Open, made_run: MakeRun, made_merge: MakeMerge,
                                                                       tiny_model: Path) -> None:
    run = made_run(base=str(tiny_model), changes={"model.quantization": "nf4"})
    folder = made_merge(run, quantised={
        "kind": "nf4", "onto": "base", "max_logit_difference": 1.25, "answers_compared": 34,
        "differences": [{"question": "Why?", "adapter": "So.", "merged": "Thus."}]})
    report = read_json(folder / "merge.json")
    report["combined"] = {
        "how": "linear", "rank": 16, "norm_ratio": 1.97, "cosine": 0.99, "weights": [0.5, 0.5],
        "models": [{"model": f"{run.id}@{step}", "strength": 1.0, "weight": 0.5} for step in (12, 36)],
        "warning": Text("This adapter is {ratio:.2f} times as strong as the weighted sum of its parts.", ratio=1.97).to_json()}
    write_json(folder / "merge.json", report)
    app = open_app("merge")
    shown = texts(app)
    assert "Linear" in shown and "1.97 times as strong as the weighted sum" in shown
    assert "33 of 34 answers are the same" in shown and "Answers that the other weights changed" in shown
    assert app.radio(key="merge_onto").value == "base"
# --- taking it elsewhere ---


def test_a_gguf_file_is_asked_for_and_its_check_is_told(open_app: Open, made_run: MakeRun, made_merge: MakeMerge, tiny_model: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr("core.convert.start.start_job", jobs.append)
    monkeypatch.setattr("core.convert.publish_job.start_job", jobs.append)
    made_merge(made_run(base=str(tiny_model)), "alex")
    for path in tiny_model.iterdir():
        (Workspace.open().models / "alex" / path.name).write_bytes(path.read_bytes())
    app = open_app("merge")
    app.selectbox(key="merge_gguf_format").set_value("f16").run()
    app.button(key="merge_gguf_start").click().run()
    assert not app.exception and jobs[0].spec()["form"] == "f16" and jobs[0].spec()["model"] == "alex"
    check = {"prompts": 4, "same_ids": True, "largest_difference": 0.04, "spread": 8.0, "same_choice": 0.99, "skipped": None}
    jobs[0].write_state(JobState(kind="gguf", state="finished", created=0, result={
        "file": "/exports/alex-f16/alex-f16.gguf", "bytes": 270e6, "check": check,
        "notes": [Text("no Modelfile for Ollama: {reason}", reason="why").to_json()]}))
    app.text_input(key="merge_publish_alex").set_value("no name").run()
    app.button(key="merge_publish_dry").click().run()
    assert "is no name of a repository" in texts(app) and len(jobs) == 1
    app.text_input(key="merge_publish_alex").set_value("me/alex").run()
    app.button(key="merge_publish_dry").click().run()
    assert not app.exception and jobs[1].spec()["dry_run"] is True
    jobs[1].write_state(JobState(kind="publish", state="finished", created=0, result={
        "repository": "me/alex", "sent": False, "files": {"README.md": 1}, "bytes": 1, "folder": "/exports/publish-me--alex"}))
    app = open_app("merge")
    assert "99.0% of the positions of 4 prompts" in texts(app) and "no Modelfile for Ollama" in texts(app)
    assert "me/alex would get 1 files" in texts(app)
