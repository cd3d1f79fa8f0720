"""The Recipe page: form and text are one recipe, changes outlive the page, and the preflight card says what will happen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.data.library import save_dataset
from core.data.persona import Persona
from core.data.store import save_persona
from core.jobs.folder import Job, JobState, create_job
from core.jobs.process import ProcessIdentity
from core.models.embedded import EMBEDDED_NAME
from core.recipe import Recipe, load_preset, load_recipe, parse_recipe, save_recipe
from core.recipe.draft import read_draft
from core.recipe.trial import Measured, keep_trial
from core.workspace import Workspace
from tests.pages.conftest import texts

OpenApp = Callable[..., AppTest]
PRESET = "identity-lesson-cpu"


@pytest.fixture
def ready(workspace: Workspace, tiny_model: Path) -> Workspace:
    """A workspace with a persona's dataset and the tiny model in the embedded one's place."""
    (workspace.models / EMBEDDED_NAME).symlink_to(tiny_model)
    rows = [{"messages": [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": f"Poet {number}."}],
             "group": group, "lang": "en"} for number in range(12) for group in ("near", "general")]
    save_persona(workspace, Persona(name="Alex"), rows, "alex")
    return workspace


def draft(workspace: Workspace, name: str = PRESET) -> Recipe:
    return parse_recipe(read_draft(workspace, name) or "", "draft")


def done(app: AppTest) -> AppTest:
    app.run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_preset_on_the_newest_dataset_is_ready_to_start(ready: Workspace, open_app: OpenApp, lang: str) -> None:
    app = open_app("recipe", lang)
    assert app.selectbox(key="recipe_name").value == PRESET
    assert app.selectbox(key="recipe_source_0_dataset").value == "alex"
    assert ("Nothing speaks against" if lang == "en" else "可以开始，没有问题") in texts(app)
    values = [metric.value for metric in app.metric]
    updates = load_preset(PRESET).schedule.updates
    assert str(updates) in values and any(value.startswith("≈") and value.endswith("GB") for value in values)
    assert not app.button(key="next_train").disabled and read_draft(ready, PRESET) is None


def test_without_data_or_model_the_errors_say_so(workspace: Workspace, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Job] = []
    monkeypatch.setattr("core.models.prepare.start_job", started.append)
    app = open_app("recipe")
    shown = texts(app)
    assert "no dataset called identity" in shown and "not prepared" in shown and app.button(key="next_train").disabled
    app.button(key="recipe_prepare").click()
    done(app)
    assert started[0].spec()["kind"] == "prepare" and "safe to close" in texts(app)


def test_a_form_change_is_a_change_of_the_text(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    app.number_input(key="recipe_schedule.updates").set_value(48)
    done(app)
    text = read_draft(ready, PRESET) or ""
    assert draft(ready).schedule.updates == 48 and "# rows that one update sees" in text, "comments stay"
    assert app.text_area(key="recipe_yaml").value == text and "not saved yet" in texts(app)
    app.text_input(key="recipe_title").input("Mine: a <b>title</b>")
    done(app)
    app.selectbox(key="recipe_method.kind").set_value("full")
    done(app)
    assert draft(ready).title == "Mine: a <b>title</b>" and draft(ready).method.kind == "full"
    assert not [widget for widget in app.number_input if widget.key == "recipe_method.rank"], "a rank matters for LoRA only"


def test_a_text_change_is_a_change_of_the_form(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    text = app.text_area(key="recipe_yaml").value
    app.text_area(key="recipe_yaml").set_value(text.replace("rank: 16", "rank: 8 # mine"))
    done(app)
    assert app.number_input(key="recipe_method.rank").value == 8
    app.number_input(key="recipe_method.rank").set_value(4)
    done(app)
    assert "rank: 4 # mine" in app.text_area(key="recipe_yaml").value


def test_a_browser_that_lags_behind_undoes_nothing(ready: Workspace, open_app: OpenApp) -> None:
    """Two fields changed in quick succession: with the second comes the text from before the first."""
    app = open_app("recipe")
    before = app.text_area(key="recipe_yaml").value
    app.number_input(key="recipe_schedule.updates").set_value(48)
    done(app)
    app.number_input(key="recipe_snapshots.count").set_value(2)
    app.text_area(key="recipe_yaml").set_value(before)
    done(app)
    assert draft(ready).schedule.updates == 48 and draft(ready).snapshots.count == 2
    assert "updates: 48" in app.text_area(key="recipe_yaml").value


def test_a_fault_in_the_text_is_shown_at_its_line(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    text = app.text_area(key="recipe_yaml").value
    line = next(number for number, row in enumerate(text.split("\n"), 1) if "rank: 16" in row)
    app.text_area(key="recipe_yaml").set_value(text.replace("rank: 16", "rnk: 16"))
    done(app)
    assert f"line {line}" in texts(app) and "Did you mean method.rank" in texts(app)
    assert any(f">{line:5}" in code.value for code in app.code) and "form comes back" in texts(app)
    assert app.button(key="next_train").disabled
    app.button(key="recipe_save").click()
    done(app)
    assert not list(ready.recipes.glob("*.yaml")), "a broken text is not saved"
    app = open_app("recipe")
    assert f"line {line}" in texts(app), "a reload finds it as it was"
    app.text_area(key="recipe_yaml").set_value(text)
    done(app)
    assert app.number_input(key="recipe_method.rank").value == 16


def test_saving_under_a_name(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    app.number_input(key="recipe_method.rank").set_value(8)
    done(app)
    assert app.text_input(key=f"recipe_new_name_{PRESET}").placeholder == f"alex-{PRESET}"
    app.text_input(key=f"recipe_new_name_{PRESET}").input("mine")
    done(app)
    app.button(key="recipe_save").click()
    done(app)
    saved = ready.recipes / "mine.yaml"
    assert load_recipe(saved).method.rank == 8 and "# The identity questions alone" in saved.read_text(encoding="utf-8")
    assert app.selectbox(key="recipe_name").value == "mine" and app.button(key="recipe_save").disabled
    assert read_draft(ready, PRESET) is None and app.query_params["recipe"] in ("mine", ["mine"])
    app.number_input(key="recipe_method.rank").set_value(4)
    done(app)
    app.button(key="recipe_discard").click()
    done(app)
    assert app.number_input(key="recipe_method.rank").value == 8
    app.button(key="recipe_delete_now").click()
    done(app)
    assert not saved.exists() and app.selectbox(key="recipe_name").value == PRESET


def test_names_that_cannot_be(ready: Workspace, open_app: OpenApp) -> None:
    save_recipe(ready, "taken", Recipe())
    for name, words in (("taken", "already a recipe"), ("../up", "cannot be the name")):
        app = open_app("recipe", recipe=PRESET)
        app.text_input(key=f"recipe_new_name_{PRESET}").input(name)
        done(app)
        app.button(key="recipe_save").click()
        done(app)
        assert words in texts(app)


def test_sources_are_mixed_dropped_and_chosen(ready: Workspace, open_app: OpenApp) -> None:
    save_dataset(ready, "talk", [{"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "Yes."}],
                                  "group": "general", "lang": "en"} for number in range(30)], "test")
    app = open_app("recipe", dataset="alex")
    assert app.selectbox(key="recipe_source_0_dataset").value == "alex" and "dataset" not in app.query_params
    app.button(key="recipe_add_source").click()
    done(app)
    assert [source.dataset for source in draft(ready).data.sources] == ["alex", "talk"]
    app.number_input(key="recipe_source_1_weight").set_value(3.0)
    done(app)
    assert "75%" in str(app.dataframe[0].value.to_dict())
    app.multiselect(key="recipe_source_0_groups").set_value(["near", "general"])
    done(app)
    assert draft(ready).data.sources[0].groups == ["near", "general"]
    app.selectbox(key="recipe_source_0_dataset").set_value("talk")
    done(app)
    assert draft(ready).data.sources[0].groups == ["general"], "groups that the dataset does not have are left out"
    app.button(key="recipe_drop_1").click()
    done(app)
    assert len(draft(ready).data.sources) == 1


def test_length_system_targets_and_automatic_numbers(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    app.segmented_control(key="recipe_length_in").set_value("schedule.epochs")
    done(app)
    app.number_input(key="recipe_schedule.epochs").set_value(2.5)
    done(app)
    assert (draft(ready).schedule.epochs, draft(ready).schedule.updates) == (2.5, None)
    app.toggle(key="recipe_data.system_own").set_value(True)
    done(app)
    assert draft(ready).data.system == ""
    app.text_area(key="recipe_data.system").set_value("Be kind.")
    app.text_input(key="recipe_method.targets").input("q_proj, v_proj")
    done(app)
    app.number_input(key="recipe_device.micro_batch").set_value(2)
    done(app)
    recipe = draft(ready)
    assert (recipe.data.system, recipe.method.targets, recipe.device.micro_batch) == ("Be kind.", ["q_proj", "v_proj"], 2)
    app.toggle(key="recipe_data.system_own").set_value(False)
    done(app)
    assert draft(ready).data.system is None
    app.text_input(key="recipe_method.targets").input(" ")
    done(app)
    assert "method.targets is empty" in texts(app) and draft(ready).method.targets == ["q_proj", "v_proj"]


def test_findings_with_numbers(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    app.number_input(key="recipe_schedule.updates").set_value(3000)
    app.number_input(key="recipe_snapshots.count").set_value(2)  # both in one go: neither undoes the other
    done(app)
    assert "schedule.updates" in texts(app) and "tokens are read" in texts(app)
    assert "125 times" in texts(app) and "Only 2 snapshots" in texts(app) and not app.button(key="next_train").disabled
    job = create_job(ready.jobs / "20260101-120000-judge-x-0001", "judge", {})
    job.write_state(JobState(kind="judge", state="running", created=1.0, process=ProcessIdentity.own()))
    done(app)
    assert job.id in texts(app) and "will wait for it" in texts(app)


def test_time_and_memory_come_from_a_run(ready: Workspace, open_app: OpenApp, made_run: Callable[..., object]) -> None:
    assert "a trial measures them" in texts(open_app("recipe"))
    run = made_run("first")
    app = open_app("recipe")
    assert run.id in texts(app) and "1.4 GB" in [metric.value for metric in app.metric]


def test_differences(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    app.segmented_control(key="recipe_panel").set_value("difference")
    done(app)
    assert "They say the same" in texts(app)
    app.number_input(key="recipe_method.rank").set_value(4)
    done(app)
    table = app.dataframe[0].value
    assert list(table.iloc[0]) == ["Rank (method.rank)", "16", "4"] and len(table) == 1
    (ready.recipes / "broken.yaml").write_text("title: [", encoding="utf-8")
    done(app)
    app.selectbox(key="recipe_other").set_value("broken")
    done(app)
    assert "not closed properly" in texts(app)


def test_a_broken_file_and_a_name_that_is_gone(ready: Workspace, open_app: OpenApp) -> None:
    (ready.recipes / "broken.yaml").write_text("title: x\nmethod:\n  rank: many\n", encoding="utf-8")
    app = open_app("recipe", recipe="broken")
    assert "line 3" in texts(app)
    assert "no recipe called gone" in texts(open_app("recipe", recipe="gone"))
    (ready.recipes / "latin.yaml").write_bytes(b"title: caf\xe9\n")
    assert "UTF-8" in texts(open_app("recipe", recipe="latin"))
    (ready.recipes / "Mine.yaml").write_text("title: x\n", encoding="utf-8")  # a name that no recipe can have, given by hand
    app = open_app("recipe", recipe="Mine")
    assert "'Mine' cannot be the name of a recipe" in texts(app) and "for example mine" in texts(app) and not app.exception
    (ready.recipes / "long.yaml").write_text("title: &a " + "x" * 900_000, encoding="utf-8")
    app = open_app("recipe", recipe="long")
    assert "line 1 (title)" in texts(app) and max(len(code.value) for code in app.code) < 1000
    assert len(app.text_area(key="recipe_yaml").value) > 900_000, "the text itself is kept"


def test_going_on_saves_and_leads_to_training(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    app.number_input(key="recipe_method.rank").set_value(8)
    done(app)
    app.button(key="next_train").click()
    done(app)
    assert load_recipe(ready.recipes / f"alex-{PRESET}.yaml").method.rank == 8
    assert app.query_params["recipe"] in (f"alex-{PRESET}", [f"alex-{PRESET}"])


def test_models_and_probes_can_be_chosen(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    assert "embedded" in app.selectbox(key="recipe_model.source").options
    app.selectbox(key="recipe_probes.dataset").set_value("alex")
    done(app)
    assert draft(ready).probes.dataset == "alex"
    app.selectbox(key="recipe_device.kind").set_value("cuda")
    done(app)
    assert draft(ready).device.kind == "cuda"


def test_an_xtuner_config_becomes_a_recipe(ready: Workspace, open_app: OpenApp) -> None:
    text = """model = dict(type='SupervisedFinetune', llm=dict(pretrained_model_name_or_path='embedded'), lora=dict(r=8, lora_alpha=16))
train_dataloader = dict(batch_size=2, dataset=dict(type='process_hf_dataset', dataset=dict(path='a/b'), max_length=64))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4), accumulative_counts=4)
train_cfg = dict(max_iters=80)
print('hello')
"""
    app = open_app("recipe")
    app.file_uploader(key="recipe_import_file").upload("mine_copy.py", text.encode())
    app.selectbox(key="recipe_import_data").set_value("alex")
    done(app)
    app.button(key="recipe_import_now").click()
    done(app)
    recipe = load_recipe(ready.recipes / "mine_copy.yaml")
    assert (recipe.schedule.effective_batch, recipe.schedule.updates, recipe.data.sources[0].dataset) == (8, 20, "alex")
    assert app.selectbox(key="recipe_name").value == "mine_copy" and "1 lines were not run" in texts(app)
    assert "print('hello')" in str(app.dataframe[0].value.to_dict())
    app.button(key="recipe_import_seen").click()
    done(app)
    assert "were not run" not in texts(app)
    app.file_uploader(key="recipe_import_file").upload("bad.py", b"x = \xe9")
    done(app)
    app.button(key="recipe_import_now").click()
    done(app)
    assert "not UTF-8" in texts(app)


def test_a_trial_is_started_followed_and_believed(ready: Workspace, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Job] = []

    def start(job: Job) -> None:
        job.write_state(JobState(kind="trial", state="running", created=1.0, process=ProcessIdentity.own()))
        started.append(job)

    monkeypatch.setattr("core.recipe.trial.start_job", start)
    app = open_app("recipe")
    app.button(key="recipe_measure").click()
    done(app)
    assert len(started) == 1 and "Measuring this recipe" in texts(app)
    started[0].write_state(JobState(kind="trial", state="finished", created=1.0))
    recipe = load_recipe(started[0].folder / "recipe.yaml")
    keep_trial(ready, recipe, Measured(2_000_000_000, 0.5, 1, 1, 0, 0, 100, started[0].id))
    app = open_app("recipe")
    assert started[0].id in texts(app) and "2.0 GB" in [metric.value for metric in app.metric]
    assert not [button for button in app.button if button.key == "recipe_measure"]


def test_what_fits_is_proposed_and_taken(ready: Workspace, open_app: OpenApp) -> None:
    app = open_app("recipe")
    assert not [button for button in app.button if button.key == "recipe_fit"], "the lesson fits as it is"
    app.number_input(key="recipe_device.micro_batch").set_value(1)
    app.selectbox(key="recipe_device.checkpointing").set_value("on")
    done(app)
    assert "4 rows at a time, 1 times an update" in texts(app)
    app.button(key="recipe_fit").click()
    done(app)
    assert (draft(ready).device.micro_batch, draft(ready).device.checkpointing) == (4, "off")
    assert draft(ready).schedule == load_preset(PRESET).schedule
