"""Recipes: their fields, the arithmetic of a plan, differences, presets, and finding one by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import StudioError
from core.recipe import (
    Recipe,
    RecipeError,
    Source,
    build_recipe,
    change_recipe,
    diff_recipes,
    dump_recipe,
    fields,
    find_recipe,
    list_recipes,
    load_preset,
    load_recipe,
    plan_updates,
    presets,
    save_recipe,
    sections,
    snapshot_steps,
    warmup_updates,
)
from core.recipe.faults import CALLED_HERE
from core.words import chinese_templates
from core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def test_defaults_make_a_recipe() -> None:
    recipe = Recipe()
    assert recipe.model.source == "embedded"
    assert recipe.data.sources == [Source(dataset="identity")]
    assert (recipe.schedule.updates, recipe.schedule.epochs) == (36, None)
    assert recipe.probe_dataset == "identity"


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().schedule.updates = 4  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    listed = fields(Recipe)
    paths = [field.path for field in listed]
    assert len(paths) == len(set(paths)) == 42
    assert {
        "title",
        "model.source",
        "schedule.learning_rate",
        "data.sources[].weight",
        "early_stop.on_alert",
    } <= set(paths)
    assert not any("save_steps" in path for path in paths)
    for path, about, default in listed:
        assert str(about.label) and str(about.help).endswith("."), path
        assert about.label.to("zh") and about.help.template in chinese_templates(), path
        if isinstance(default, int | float) and not isinstance(default, bool) and not about.choices:
            assert about.minimum is not None and about.maximum is not None, f"{path} has no range"
            assert about.minimum <= default <= about.maximum, path
        if about.choices:
            assert default in about.choice_names, path
        if about.shown_if:
            assert about.shown_if[0] in paths
    assert set(sections(Recipe)) == {
        "model",
        "method",
        "data",
        "schedule",
        "snapshots",
        "probes",
        "device",
        "early_stop",
        "log",
    }


def test_fields_of_an_instance_give_its_values() -> None:
    recipe = change_recipe(load_preset("identity-lesson-replay"), {"data.sources[1].weight": 2.0})
    values = {field.path: field.default for field in fields(recipe)}
    assert values["schedule.updates"] == 36
    assert values["data.sources[1].weight"] == 2
    assert values["data.sources[0].groups"] == ["identity"]


def test_choices_of_form_and_schema_are_the_same() -> None:
    seen = 0
    for path, about, _ in fields(Recipe):
        section, _, name = path.rpartition(".")
        if not about.choices:
            continue
        for value in about.choice_names:
            assert build_recipe({section: {name: value}})
        with pytest.raises(RecipeError):
            build_recipe({section: {name: "something else"}})
        seen += 1
    assert seen == 13


def test_json_schema_carries_the_words() -> None:
    schema = Recipe.model_json_schema()
    rate = schema["$defs"]["ScheduleSection"]["properties"]["learning_rate"]
    assert rate["title"] == "Learning rate" and rate["minimum"] == 1e-8


def test_names_used_elsewhere_lead_to_fields_that_exist() -> None:
    assert set(CALLED_HERE.values()) <= {field.path for field in fields(Recipe)}


def test_diff_lists_changed_fields_only() -> None:
    a, b = load_preset("identity-lesson-cpu"), load_preset("identity-lesson-replay")
    assert diff_recipes(a, a) == []
    assert diff_recipes(a, b) == [
        ("title", a.title, b.title),
        ("data.sources[1]", None, {"dataset": "identity", "groups": ["near", "general"], "weight": 1.0}),
        ("schedule.effective_batch", 4, 8),
        ("schedule.updates", 24, 36),
    ]
    assert diff_recipes(a, change_recipe(a, {"data.sources[0].weight": 2.0, "method.targets": ["q_proj"]})) == [
        ("method.targets", "all-linear", ["q_proj"]),
        ("data.sources[0].weight", 1.0, 2.0),
    ]


def test_change_recipe_checks_like_a_file() -> None:
    assert change_recipe(Recipe(), {"schedule.epochs": 2.0}).schedule.updates is None
    assert change_recipe(Recipe(), {"data.sources[0].dataset": "alex"}).data.sources[0].dataset == "alex"
    for wrong in (
        {"schedule.lr": 1},
        {"nowhere.x": 1},
        {"data.sources[4].weight": 1.0},
        {"title.x": 1},
        {"schedule.updates": 3, "schedule.epochs": 2.0},
        {"schedule.seed": "three"},
    ):
        with pytest.raises(RecipeError):
            change_recipe(Recipe(), wrong)


def test_change_recipe_reads_what_a_command_line_gives() -> None:
    recipe = change_recipe(
        Recipe(),
        {
            "title": "12",
            "schedule.learning_rate": "1e-4",
            "schedule.epochs": "2",
            "method.dora": "true",
            "method.targets": "[q_proj, v_proj]",
            "data.sources[0].groups": "[near, general]",
            "device.micro_batch": "null",
            "device.checkpointing": "on",
            "early_stop.on_alert": "off",
        },
    )
    assert (recipe.title, recipe.schedule.learning_rate, recipe.schedule.epochs) == ("12", 1e-4, 2)
    assert (recipe.schedule.updates, recipe.method.dora, recipe.device.micro_batch) == (None, True, None)
    assert recipe.method.targets == ["q_proj", "v_proj"]
    assert recipe.data.sources[0].groups == ["near", "general"]
    assert (recipe.device.checkpointing, recipe.early_stop.on_alert) == ("on", "off")
    with pytest.raises(RecipeError, match="--set: schedule.updates must be a number"):
        change_recipe(Recipe(), {"schedule.updates": "many"}, "--set")
    for wrong in ({"": "3"}, {"schedule.updates": "!!python/name:os.system x"}, {"schedule.updates": "[1"}):
        with pytest.raises(RecipeError):
            change_recipe(Recipe(), wrong)


def test_gpus_are_auto_a_count_or_a_list() -> None:
    for given, meant in {"auto": "auto", "2": 2, "[0, 2]": [0, 2], "[1]": [1]}.items():
        assert change_recipe(Recipe(), {"device.gpus": given, "device.zero": "2"}).device.gpus == meant
    for wrong in (0, -1, [], [0, 0], [-1], "all", True, 1.5, "[0, 0]"):
        with pytest.raises(RecipeError, match="device.gpus (must be auto, a number from 1, or a list|is empty)"):
            change_recipe(Recipe(), {"device.gpus": wrong})
    with pytest.raises(RecipeError, match="device.zero must be one of 0, 1, 2, 3, not the number 4"):
        change_recipe(Recipe(), {"device.zero": 4})


@pytest.mark.parametrize("spacing", ["even", "early"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 20, 36, 37, 100, 999])
def test_snapshot_steps_rise_and_end_with_the_run(count: int, spacing: str) -> None:
    recipe = change_recipe(Recipe(), {"snapshots.count": count, "snapshots.spacing": spacing})
    for updates in [*range(1, 60), 100, 768, 1000, 12_345, 10_000_000]:
        steps = snapshot_steps(recipe, updates)
        assert len(steps) == min(count, updates)
        assert steps[-1] == updates and steps[0] >= 1
        assert all(before < after for before, after in zip(steps, steps[1:], strict=False))
        if spacing == "even":
            gaps = {after - before for before, after in zip([0, *steps], steps, strict=False)}
            assert max(gaps) - min(gaps) <= 1


def test_early_snapshots_are_denser_at_the_start() -> None:
    recipe = change_recipe(Recipe(), {"snapshots.count": 6, "snapshots.spacing": "early"})
    assert snapshot_steps(recipe, 36) == [1, 4, 9, 16, 25, 36]
    assert snapshot_steps(Recipe(), 36) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36]


def test_plan_from_updates_and_from_epochs() -> None:
    plan = plan_updates(Recipe(), rows=40)
    assert (plan.updates, plan.exposures_per_row, len(plan.snapshot_steps)) == (36, 3.6, 12)
    epochs = change_recipe(Recipe(), {"schedule.epochs": 0.1, "schedule.effective_batch": 1})
    assert plan_updates(epochs, rows=30).updates == 3
    whole = change_recipe(Recipe(), {"schedule.epochs": 1.0, "schedule.effective_batch": 8})
    plan = plan_updates(whole, rows=17)
    assert plan.updates == 3 and plan.exposures_per_row >= 1 and plan.snapshot_steps == [1, 2, 3]
    assert plan_updates(change_recipe(whole, {"schedule.epochs": 0.01}), rows=3).updates == 1
    with pytest.raises(StudioError, match="no rows"):
        plan_updates(Recipe(), rows=0)


def test_warm_up_never_swallows_a_run() -> None:
    recipe = change_recipe(Recipe(), {"schedule.warmup_updates": 100})
    assert [warmup_updates(recipe, updates) for updates in (1, 9, 10, 36, 5000)] == [0, 0, 1, 3, 100]


def test_presets_are_recipes_and_say_when_to_use_them() -> None:
    found = presets()
    assert [preset.name for preset in found][:2] == ["identity-lesson-cpu", "identity-lesson-replay"]
    assert {preset.name for preset in found} == {path.stem for path in (ROOT / "core/recipe/presets").glob("*")} and len(found) == 22
    for preset in found:
        assert str(preset.title) == preset.recipe.title
        header = preset.text.split("\n\n")[0]
        assert " ".join(line.removeprefix("# ") for line in header.splitlines()) == str(preset.when)
        assert preset.title.to("zh") != str(preset.title) and preset.when.to("zh") != str(preset.when)
        assert dump_recipe(preset.recipe, preset.text) == preset.text


def test_the_lesson_presets_are_those_of_the_study() -> None:
    alone, replay = load_preset("identity-lesson-cpu"), load_preset("identity-lesson-replay")
    for recipe in (alone, replay):
        assert recipe.model.dtype == "float32" and recipe.model.source == "embedded"
        assert (recipe.method.kind, recipe.method.rank, recipe.method.alpha, recipe.method.dropout) == (
            "lora",
            16,
            32,
            0,
        )
        assert (recipe.schedule.learning_rate, recipe.schedule.shape) == (2e-4, "constant")
    assert (alone.schedule.updates, replay.schedule.updates) == (24, 36)
    assert snapshot_steps(alone, 24) == [*range(1, 14), 15, 17, 19, 21, 24], "every update around the transition"
    assert len(snapshot_steps(replay, 36)) == 18
    assert [source.groups for source in alone.data.sources] == [["identity"]]
    assert [source.groups for source in replay.data.sources] == [["identity"], ["near", "general"]]
    assert (alone.schedule.effective_batch, replay.schedule.effective_batch) == (4, 8)


def test_find_recipe_by_name_preset_or_path(workspace: Workspace, tmp_path: Path) -> None:
    assert find_recipe(workspace, "identity-lesson-cpu") == load_preset("identity-lesson-cpu")
    mine = change_recipe(Recipe(), {"title": "mine"})
    path = save_recipe(workspace, "identity-lesson-cpu", mine)
    assert find_recipe(workspace, "identity-lesson-cpu") == mine, "one's own comes first"
    elsewhere = path.rename(tmp_path / "elsewhere.yaml")
    assert find_recipe(workspace, str(elsewhere)) == mine
    with pytest.raises(StudioError) as caught:
        find_recipe(workspace, "identity-leson-cpu")
    assert str(caught.value.hint) == "Did you mean identity-lesson-cpu?"
    for unknown in ("nothing-like-it", "../x", "x/y.yaml", "", "~/none.yml", "a\x00b", "a" * 300, "a/" + "b" * 300):
        with pytest.raises(StudioError):
            find_recipe(workspace, unknown)
    with pytest.raises(StudioError, match="no preset"):
        load_preset("none")


def test_save_refuses_bad_names_and_silent_replacement(workspace: Workspace) -> None:
    for name in ("../x", "a/b", "", "A b"):
        with pytest.raises(StudioError):
            save_recipe(workspace, name, Recipe())
    save_recipe(workspace, "mine", Recipe(), replace=False)
    with pytest.raises(StudioError, match="already"):
        save_recipe(workspace, "mine", Recipe(), replace=False)
    assert list_recipes(workspace) == ["mine"]
    path = workspace.recipes / "mine.yaml"
    path.write_text("# note\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    save_recipe(workspace, "mine", change_recipe(Recipe(), {"method.rank": 4}))
    assert path.read_text(encoding="utf-8").startswith("# note\n") and load_recipe(path).method.rank == 4


def test_no_heavy_library_is_loaded() -> None:
    code = "import sys, core.recipe; print(sorted({'torch', 'transformers', 'streamlit'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
