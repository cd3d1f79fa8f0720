"""What a recipe is told before it starts, what it will do, and the draft of a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.data.library import save_dataset
from core.data.persona import Persona
from core.data.store import save_persona
from core.errors import StudioError
from core.jobs.folder import JobState, create_job
from core.jobs.process import ProcessIdentity
from core.machine import Gpu, GpuUser
from core.models.catalogue import find_local_base
from core.recipe import Recipe, change_recipe, dump_recipe, load_preset, parse_recipe, save_recipe
from core.recipe.checks import check_recipe
from core.recipe.draft import drop_draft, on_card, read_draft, starting_text, write_draft
from core.recipe.forecast import forecast
from core.runs import Run
from core.workspace import Workspace, write_json, write_jsonl, write_text


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, [])


def show_gpus(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu]) -> None:
    for module in ("checks", "forecast", "pace", "trial"):
        monkeypatch.setattr(f"core.recipe.{module}.read_gpus", lambda: gpus)
    monkeypatch.setattr("core.machine.read_gpus", lambda: gpus)
    monkeypatch.setattr("core.recipe.forecast.device_name", lambda: "cuda:0" if gpus else "cpu")


@pytest.fixture
def recipe(workspace: Workspace, tiny_model: Path) -> Recipe:
    """The lesson's recipe on a persona dataset and the tiny model: nothing speaks against it."""
    save_persona(workspace, Persona(name="Alex"), [row("near"), row("general")], "alex")
    return change_recipe(on_dataset(load_preset("identity-lesson-cpu"), "alex"), {"model.source": str(tiny_model)})


def on_dataset(recipe: Recipe, name: str) -> Recipe:
    return change_recipe(recipe, {f"data.sources[{index}].dataset": name for index in range(len(recipe.data.sources))})


def row(group: str, text: str = "What?") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "That."}], "group": group, "lang": "en"}


def codes(workspace: Workspace, recipe: Recipe, **changes: Any) -> list[str]:
    found = check_recipe(workspace, change_recipe(recipe, {key.replace("__", "."): value for key, value in changes.items()}))
    for finding in found:
        assert str(finding.text) and str(finding.fix)
    return [finding.code for finding in found]


def test_the_lesson_is_left_in_peace(workspace: Workspace, recipe: Recipe) -> None:
    assert check_recipe(workspace, recipe) == []


@pytest.mark.parametrize(("changes", "code"), [
    ({"data__sources": [{"dataset": "none"}]}, "no_dataset"),
    ({"data__sources": [{"dataset": "alex", "groups": ["poems"]}]}, "no_rows"),
    ({"data__sources": [{"dataset": "alex", "groups": ["near"]}]}, "few_rows"),
    ({"data__max_length": 20}, "cut_rows"),
    ({"data__max_length": 4096}, "too_long"),
    ({"probes__dataset": "none"}, "no_probe_dataset"),
    ({"model__source": "/none"}, "no_model"),
    ({"model__source": "no such model"}, "no_model"),
    ({"model__source": "embedded"}, "not_prepared"),
    ({"model__source": "nobody/has-this-one"}, "to_fetch"),
    ({"method__targets": ["wq"]}, "no_layers"),
    ({"device__kind": "cuda"}, "no_gpu"),
    ({"model__quantization": "nf4"}, "slow_quantization"),
    ({"model__quantization": "nf4", "device__zero": 3}, "slow_quantization"),
    ({"model__quantization": "nf4", "device__zero": 3}, "quantized_zero3"),
    ({"model__quantization": "nf4", "method__kind": "full", "schedule__learning_rate": 1e-5}, "frozen_weights"),
    ({"model__dtype": "bfloat16"}, "slow_dtype"),
    ({"schedule__learning_rate": 0.1}, "unusual_rate"),
    ({"schedule__learning_rate": 1e-6}, "unusual_rate"),
    ({"method__kind": "full"}, None),
    ({"method__kind": "full", "schedule__learning_rate": 1e-3}, "unusual_rate"),
    ({"schedule__updates": 3}, "few_updates"),
    ({"schedule__updates": 20, "schedule__learning_rate": 2e-5}, "few_updates"),
    ({"schedule__epochs": 30.0}, "many_exposures"),
    ({"schedule__effective_batch": 500}, "large_batch"),
    ({"snapshots__count": 2}, "few_snapshots"),
])
def test_each_fault_is_found(workspace: Workspace, recipe: Recipe, changes: dict[str, Any], code: str | None) -> None:
    found = codes(workspace, recipe, **changes)
    assert code in found if code else found == []


def test_errors_come_first_with_their_numbers(workspace: Workspace, recipe: Recipe) -> None:
    wrong = change_recipe(recipe, {"schedule.updates": 2000, "device.kind": "cuda", "method.targets": ["wq"]})
    found = check_recipe(workspace, wrong)
    assert [finding.level for finding in found] == sorted(finding.level for finding in found)
    many = next(finding for finding in found if finding.code == "many_exposures")
    assert many.field == "schedule.updates" and "83 times" in str(many.text) and "96 rows of alex" in str(many.text)
    assert many.text.to("zh") != str(many.text) and many.fix.to("zh") != str(many.fix)


def test_few_updates_are_told_by_what_they_reach(workspace: Workspace, recipe: Recipe) -> None:
    """A huge learning rate reaches far in three updates: that is no comfort, and no number to show."""
    plain = "3 updates may be too few to learn: the identity lesson needed 12"
    for changes, words in (({"schedule.updates": 3, "schedule.learning_rate": 1e-4}, "reach 12 % of"),
                           ({"schedule.updates": 3, "schedule.learning_rate": 0.1}, plain),
                           ({"schedule.updates": 3, "method.kind": "full"}, plain)):
        few = next(found for found in check_recipe(workspace, change_recipe(recipe, changes)) if found.code == "few_updates")
        assert words in str(few.text), changes


def test_a_gpu_makes_the_slow_things_fast(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, [Gpu(index=0, name="x", total_bytes=10**10, free_bytes=10**10)])
    assert codes(workspace, recipe, model__quantization="nf4", device__kind="auto", model__dtype="auto") == []
    assert forecast(workspace, change_recipe(recipe, {"device.kind": "auto"})).device == "cuda:0"


@pytest.mark.parametrize(("capability", "changes", "code"), [
    ((7, 5), {"model__dtype": "bfloat16"}, "no_bf16"),
    ((8, 0), {"model__dtype": "bfloat16"}, None),
    ((7, 5), {"model__dtype": "float16", "device__zero": 2}, "float16_zero"),
    ((5, 2), {"model__quantization": "nf4"}, "old_gpu"),
    ((7, 0), {"model__quantization": "int8"}, "old_gpu"),
    ((9, 0), {"device__gpus": 2}, "too_few_gpus"),
    ((9, 0), {"device__gpus": [1]}, "too_few_gpus"),
    ((9, 0), {"device__zero": 2}, "zero_alone"),
    ((9, 0), {"device__offload": "optimizer"}, "idle_offload"),
    ((9, 0), {"model__quantization": "nf4", "device__zero": 3, "device__offload": "all"}, "quantized_zero3"),
])
def test_what_a_gpu_cannot_do(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int],
                              changes: dict[str, Any], code: str | None) -> None:
    show_gpus(monkeypatch, [Gpu(index=0, name="Old card", total_bytes=10**10, free_bytes=10**10, capability=capability)])
    found = codes(workspace, recipe, device__kind="auto", **({"model__dtype": "auto"} | changes))
    assert code in found if code else found == []


def test_the_gpus_that_the_recipe_names_are_looked_at(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first card is new, the second is old and full of others."""
    show_gpus(monkeypatch, [Gpu(index=index, name=f"card {index}", total_bytes=10**10, free_bytes=10**10, capability=capability)
                            for index, capability in enumerate([(9, 0), (5, 2)])])
    monkeypatch.setattr("core.recipe.device_checks.gpu_users", lambda index: [GpuUser(pid=41, name="python", used_bytes=3 * 10**9)] * index)
    for gpus, expected in (([0], set()), ("auto", set()), ([1], {"no_bf16", "old_gpu", "gpu_shared"}),
                           (2, {"no_bf16", "old_gpu", "gpu_shared"})):
        found = codes(workspace, recipe, device__kind="auto", model__dtype="bfloat16", model__quantization="nf4", device__gpus=gpus)
        assert {"no_bf16", "old_gpu", "gpu_shared"} & set(found) == expected, gpus


def test_one_way_out_does_not_lead_into_another_fault(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, [Gpu(index=index, name="old", total_bytes=10**10, free_bytes=10**10, capability=(7, 0)) for index in range(2)])
    for zero, dtype in ((0, "float16"), (2, "float32")):
        found = {finding.code: finding for finding in check_recipe(workspace, change_recipe(recipe, {
            "device.kind": "auto", "model.dtype": "bfloat16", "device.gpus": 2, "device.zero": zero}))}
        assert dtype in str(found["no_bf16"].fix)
        assert "float16_zero" not in codes(workspace, recipe, device__kind="auto", model__dtype=dtype, device__gpus=2, device__zero=zero)


def test_zero_is_explained_before_the_model_is_here(workspace: Workspace, recipe: Recipe) -> None:
    found = {finding.code: finding for finding in check_recipe(workspace, change_recipe(
        recipe, {"model.source": "nobody/has-this-one", "device.zero": 2}))}
    assert "nobody to divide with: it would use more memory" in str(found["zero_alone"].text) and "to_fetch" in found


def test_zero_on_one_gpu_is_explained_with_a_number(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, [Gpu(index=0, name="x", total_bytes=10**10, free_bytes=10**10)])
    alone = change_recipe(recipe, {"device.kind": "auto", "model.dtype": "auto", "method.kind": "full", "schedule.learning_rate": 1e-5,
                                   "device.zero": 2})
    found = next(finding for finding in check_recipe(workspace, alone) if finding.code == "zero_alone")
    assert "about 0.0012 GB more" in str(found.text) and found.field == "device.zero", "3 x 4 bytes of 99,648 values"


def test_what_does_not_fit_and_who_else_is_there(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = {"device__kind": "auto", "model__dtype": "auto"}
    show_gpus(monkeypatch, [Gpu(index=0, name="x", total_bytes=10**10, free_bytes=10**5)])
    assert "no_memory" in codes(workspace, recipe, **on_gpu)
    show_gpus(monkeypatch, [Gpu(index=0, name="x", total_bytes=10**10, free_bytes=3 * 10**6)])
    assert "much_memory" in codes(workspace, recipe, **on_gpu, device__micro_batch=4)
    show_gpus(monkeypatch, [Gpu(index=0, name="x", total_bytes=10**10, free_bytes=10**10)])
    monkeypatch.setattr("core.recipe.device_checks.gpu_users", lambda index: [GpuUser(pid=41, name="python", used_bytes=3 * 10**9)])
    shared = next(found for found in check_recipe(workspace, change_recipe(recipe, {"device.kind": "auto", "model.dtype": "auto"}))
                  if found.code == "gpu_shared")
    assert "python (pid 41, 3.0 GB)" in str(shared.text) and shared.field == "device.gpus"


def test_a_package_that_is_missing(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.recipe.device_checks.has_package", lambda name: False)
    assert "missing_package" in codes(workspace, recipe, model__quantization="nf4")
    assert "missing_package" in codes(workspace, recipe, device__zero=2) and "missing_package" not in codes(workspace, recipe)


def template_codes(workspace: Workspace, recipe: Recipe, model: Path) -> list[str]:
    return [code for code in codes(workspace, recipe, model__source=str(model)) if "template" in code]


def test_templates_that_are_not_the_models_own(workspace: Workspace, recipe: Recipe, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    assert template_codes(workspace, recipe, model) == []
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    (model / "chat_template.jinja").write_text(template.replace("<|im_start|>", "<|start|>"), encoding="utf-8")
    assert template_codes(workspace, recipe, model) == ["foreign_template"]
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(model / "tokenizer_config.json", config | {"chat_template": template + " "})
    assert template_codes(workspace, recipe, model) == [], "white space at the end makes no other template"
    write_json(model / "tokenizer_config.json", config | {"chat_template": "{{ messages }}"})
    assert template_codes(workspace, recipe, model) == ["two_templates"]
    write_json(model / "tokenizer_config.json", config | {"eos_token": "<|endoftext|>"})
    write_json(model / "generation_config.json", {"eos_token_id": 0})
    assert template_codes(workspace, recipe, model) == ["base_with_template"]
    (model / "chat_template.jinja").unlink()
    assert template_codes(workspace, recipe, model) == ["no_template"]


def test_datasets_without_probes_and_full_disks(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dataset(workspace, "plain", [row("general", f"{number}?") for number in range(20)], "test")
    assert codes(workspace, recipe, data__sources=[{"dataset": "plain"}]) == ["no_probes"]
    monkeypatch.setattr(Workspace, "free_bytes", lambda self: 1000)
    assert codes(workspace, recipe) == ["disk"]


def test_who_holds_the_device(workspace: Workspace, recipe: Recipe) -> None:
    job = create_job(workspace.jobs / "20260101-120000-judge-x-0001", "judge", {})
    job.write_state(JobState(kind="judge", state="running", created=1.0, process=ProcessIdentity.own()))
    busy = check_recipe(workspace, recipe)[0]
    assert (busy.code, busy.field) == ("busy", "device.kind") and job.id in str(busy.text)


def test_no_model_is_fetched_to_look_at_it(workspace: Workspace, tiny_model: Path) -> None:
    assert find_local_base(workspace, "embedded") is None and find_local_base(workspace, "nobody/has-this") is None
    assert find_local_base(workspace, str(tiny_model)) == tiny_model


def test_the_forecast_is_arithmetic(workspace: Workspace, recipe: Recipe) -> None:
    known = forecast(workspace, change_recipe(recipe, {"schedule.updates": 48, "schedule.effective_batch": 4, "data.sources": [
        {"dataset": "alex", "groups": ["identity"], "weight": 1.0}, {"dataset": "alex", "groups": ["near", "general"], "weight": 3.0}]}))
    assert [(use.rows, use.share, use.exposures) for use in known.sources] == [(96, 0.25, 0.5), (2, 0.75, 72.0)]
    adapted = 16 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3) * 2
    weights = 4 * (400 * 64 + 64 + 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128 + 128))
    assert known.snapshot_bytes == 4 * adapted and known.memory and known.memory.before_activations == weights + 16 * adapted
    assert known.basis == "arithmetic" and known.measured_on is None and known.memory_bytes == known.memory.total
    assert known.seconds and known.tokens and known.tokens > 48 * 4
    with pytest.raises(StudioError):
        forecast(workspace, change_recipe(recipe, {"data.sources": [{"dataset": "none"}]}))


def test_time_and_memory_come_from_the_newest_run_like_it(workspace: Workspace, recipe: Recipe) -> None:
    def made(number: int, like: Recipe, speed: float, state: str = "finished", device: str = "cpu") -> str:
        run = Run(create_job(workspace.runs / f"2026010{number}-120000-x", "train", {}, device).folder)
        run.write_state(JobState(kind="train", state=state, device=device, created=1.0))
        write_text(run.folder / "recipe.yaml", dump_recipe(like))
        write_json(run.folder / "environment.json", {"device": device})
        write_jsonl(run.folder / "metrics.jsonl", [{"update": n, "tokens_per_second": 1.0 if n == 1 else speed, "memory_bytes": n * 10**6}
                                                   for n in range(1, 5)])
        return run.id

    made(1, recipe, 50.0)
    wanted = made(2, recipe, 100.0)
    made(3, change_recipe(recipe, {"method.rank": 64}), 1.0)
    made(4, recipe, 1.0, state="failed")
    made(5, recipe, 1.0, device="cuda:0")
    (workspace.runs / "20260106-120000-broken").mkdir()
    for changes in ({"data.max_length": 128}, {"data.packing": True}, {"schedule.effective_batch": 64}, {"method.targets": ["q_proj"]},
                    {"device.micro_batch": 1}):
        assert forecast(workspace, change_recipe(recipe, changes)).basis == "arithmetic", f"its memory is another's: {changes}"
    longer = change_recipe(recipe, {"schedule.updates": 99, "schedule.learning_rate": 1e-3, "snapshots.count": 3, "title": "x"})
    assert forecast(workspace, longer).measured_on == wanted
    known = forecast(workspace, recipe)
    assert known.measured_on == wanted and known.memory_bytes == 4 * 10**6
    assert known.tokens and known.seconds == pytest.approx(known.tokens / 100)


def test_a_preset_is_put_on_a_dataset_that_is_here(workspace: Workspace, recipe: Recipe) -> None:
    save_dataset(workspace, "plain", [row("general")], "test")
    text = starting_text(workspace, "identity-lesson-replay", "alex")
    assert "# The remedy" in text and [source.dataset for source in parse_recipe(text, "x").data.sources] == ["alex", "alex"]
    plain = parse_recipe(starting_text(workspace, "identity-lesson-cpu", "plain"), "x")
    assert [(source.dataset, source.groups) for source in plain.data.sources] == [("plain", None)]
    newest = parse_recipe(starting_text(workspace, "identity-lesson-replay"), "x")
    assert [(source.dataset, source.groups) for source in newest.data.sources] == [("plain", ["general"])]
    assert "基座模型" in starting_text(workspace, "identity-lesson-cpu", "alex", "zh")
    save_recipe(workspace, "mine", recipe)
    assert starting_text(workspace, "mine") == (workspace.recipes / "mine.yaml").read_text(encoding="utf-8")
    assert parse_recipe(starting_text(workspace, "mine", "plain"), "x").data.sources[0].dataset == "plain"
    with pytest.raises(StudioError):
        starting_text(workspace, "none")


def test_on_card_keeps_weights(workspace: Workspace) -> None:
    card = save_dataset(workspace, "mixed", [row("near"), row("identity")], "test").card
    recipe = change_recipe(load_preset("identity-lesson-replay"), {"data.sources[1].weight": 2.0})
    sources = on_card(recipe, card).data.sources
    assert [(source.groups, source.weight) for source in sources] == [(["identity"], 1.0), (["near"], 2.0)]


def test_a_draft_outlives_the_page(workspace: Workspace) -> None:
    assert read_draft(workspace, "mine") is None
    write_draft(workspace, "mine", "title: [broken")
    assert read_draft(workspace, "mine") == "title: [broken"
    drop_draft(workspace, "mine")
    drop_draft(workspace, "mine")
    assert read_draft(workspace, "mine") is None
    with pytest.raises(StudioError):
        write_draft(workspace, "../mine", "x")
