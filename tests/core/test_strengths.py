"""An adapter at eight strengths: asked together as one by one, chosen by the rule, and usable under its name. And recipes of remedies."""

from __future__ import annotations

import json
import shutil

import pytest

from core.data.library import save_dataset
from core.errors import StudioError
from core.jobs.folder import create_job
from core.judge.probes import probes_of
from core.judge.remedies import average_request, remedies
from core.judge.remedy_recipes import half_rate_recipe, has_replay, keep_recipe, replay_recipe, replay_source
from core.judge.strengths import STRENGTHS, make_view, read_scan, start_scan, strengths_job
from core.models.catalogue import find_model
from core.recipe.files import change_recipe, load_recipe
from core.recipe.plan import plan_updates
from core.runs import Run
from core.train.create import create_run
from core.workspace import Workspace, append_jsonl, read_json
from tests.core.conftest import save_tiny_dataset, tiny_recipe, tiny_rows
from tests.core.test_killed import Silent


@pytest.fixture
def copied(trained_run, tmp_path) -> tuple[Workspace, Run]:
    """The trained run in a workspace that may be written to."""
    workspace, run = trained_run
    place = Workspace.open(shutil.copytree(workspace.root, tmp_path / "copy"))
    return place, Run(place.runs / run.id)


def answers_one_by_one(workspace, run, strength: float, probes) -> dict[str, str]:
    from core.chat.engine import Engine, Row
    from core.chat.stacked import Adapter
    from core.data.encode import Encoder

    model = find_model(workspace, f"{run.id}@6*{strength:g}")
    encoder = Encoder.from_folder(model.base)
    engine = Engine.load(model.base, [Adapter("alone", model.adapter, model.strength)], encoder.end_ids, encoder.pad_id())
    return {probe["id"]: encoder.decode(engine.answer([Row(0, encoder.encode_prompt(probe["messages"]))], 8)[0].ids).strip()
            for probe in probes}


def test_strengths_in_one_batch_answer_as_one_by_one(copied):
    workspace, run = copied
    job = create_job(workspace.jobs / "scan", "strengths", {"run": run.id, "step": 6})
    found = strengths_job(workspace, job, Silent())
    scan = read_scan(run, 6)
    assert scan is not None and found["model"] == scan.reference == f"{run.id}@6" + ("" if scan.strength == 1 else f"*{scan.strength:g}")
    assert [score["strength"] for score in scan.scores] == [0, *STRENGTHS] and scan.strength in STRENGTHS
    _, probes = probes_of(workspace, run)
    together: dict[float, dict[str, str]] = {}
    for line in (run.folder / "strengths" / "000006" / "answers.jsonl").read_text().splitlines():
        record = json.loads(line)
        together.setdefault(record["step"] / 1000, {})[record["probe"]] = record["text"]
    assert len({tuple(sorted(answers.items())) for answers in together.values()}) > 2, "strength makes a difference here"
    for strength in (0.25, 0.625, 1.0):
        assert together[strength] == answers_one_by_one(workspace, run, strength, probes)
    original = read_json(run.checkpoints()[-1].folder / "adapter_config.json")
    assert original["lora_alpha"] == 8, "the snapshot itself is untouched"
    assert strengths_job(workspace, job, Silent()) == found, "nothing is asked twice, and the rule takes the same"


def test_a_weaker_adapter_is_a_plain_peft_folder(copied, tiny_model):
    """What PEFT makes of the folder is the base's weights and strength x B A."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    _, run = copied
    view = make_view(run, run.checkpoints()[-1], (0.375,))
    (weak,) = view.checkpoints()
    tensors = load_file(run.checkpoints()[-1].folder / "adapter_model.safetensors")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), weak.folder).merge_and_unload()
    name = "model.layers.0.self_attn.q_proj"
    a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    base = AutoModelForCausalLM.from_pretrained(tiny_model).get_submodule(name).weight
    torch.testing.assert_close(merged.get_submodule(name).weight, base + 0.375 * (8 / 4) * b @ a)
    assert weak.folder.joinpath("adapter_model.safetensors").samefile(run.checkpoints()[-1].folder / "adapter_model.safetensors")


def test_what_was_asked_of_the_run_is_not_asked_again(copied):
    workspace, run = copied
    probe = probes_of(workspace, run)[1][0]["id"]
    for step in (0, 4, 6):
        append_jsonl(run.folder / "answers.jsonl", {"step": step, "probe": probe, "text": f"of {step}", "ended": True, "tokens": 2})
    view = make_view(run, run.checkpoints()[-1])
    assert {record["step"]: record["text"] for record in view.answers()} == {0: "of 0", 1000: "of 6"}
    assert make_view(run, run.checkpoints()[-1]).answers() == view.answers(), "once"


def test_whole_models_have_no_strength(workspace, tiny_model):
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model, method__kind="full"))
    with pytest.raises(StudioError, match="only an adapter has a strength"):
        start_scan(workspace, run)


def identity_run(workspace, tiny_model, **changes) -> Run:
    if not (workspace.datasets / "tiny").exists():
        save_tiny_dataset(workspace)
    recipe = change_recipe(tiny_recipe(tiny_model), {
        "data.sources": [{"dataset": "tiny", "groups": ["identity"], "weight": 3.0}], **changes})
    return create_run(workspace, recipe)


def test_a_recipe_with_its_own_answers_sees_as_much_of_the_task_as_before(workspace, tiny_model):
    run = identity_run(workspace, tiny_model)
    before, after = run.recipe(), replay_recipe(workspace, run)
    shares = [source.weight * after.schedule.effective_batch / 6 for source in after.data.sources]
    assert shares == [before.schedule.effective_batch, before.schedule.effective_batch]
    assert after.data.sources[1].groups == ["near", "general"] and after.probe_dataset == before.probe_dataset
    name = keep_recipe(workspace, run, after, "replay")
    assert load_recipe(workspace.recipes / f"{name}.yaml") == after
    assert keep_recipe(workspace, run, after, "replay") == name, "the same recipe is not saved twice"
    assert keep_recipe(workspace, run, before, "replay") == f"{name}-2"


def test_the_rows_of_ones_own_task_are_no_replay(workspace, tiny_model):
    save_dataset(workspace, "task", [row | {"group": "general"} for row in tiny_rows()[:6]], "import")
    run = identity_run(workspace, tiny_model, **{"data.sources": [{"dataset": "task"}], "probes.dataset": "tiny"})
    assert not has_replay(workspace, run) and replay_source(workspace, run) is None, "its answers lie beside it, once they are collected"
    save_dataset(workspace, "task-own-answers", tiny_rows()[6:], "replay")
    mixed = replay_recipe(workspace, run)
    assert [(source.dataset, source.groups) for source in mixed.data.sources] == [("task", None), ("task-own-answers", None)]
    assert has_replay(workspace, create_run(workspace, mixed)) and not has_replay(workspace, identity_run(workspace, tiny_model))


@pytest.mark.parametrize("length", [{"schedule.updates": 6}, {"schedule.epochs": 2.0}])
def test_half_the_rate_goes_twice_as_long(workspace, tiny_model, length):
    run = identity_run(workspace, tiny_model, **length)
    before, after = run.recipe(), half_rate_recipe(run)
    assert after.schedule.learning_rate == before.schedule.learning_rate / 2
    assert plan_updates(after, 6).updates == 2 * plan_updates(before, 6).updates


def test_a_remedy_that_was_tried_tells_what_it_did_here(copied):
    """Two judged runs on the same questions: the one with replay is the measure of the other's remedy."""
    workspace, run = copied
    other = Run(shutil.copytree(run.folder, run.folder.with_name("20270101-000000-alone-0000")))
    spec = other.dataset()
    (other.folder / "dataset.json").write_text(json.dumps({**spec, "sources": [{**spec["sources"][0], "groups": ["identity"]}]}))
    score = {"hits": 2, "identity_probes": 2, "leaks": 1, "other_probes": 3, "score": 0.5}
    verdict = {"verdict": "compromise", "pick": {"step": 4, **score}}
    for each, leaks in ((run, 0), (other, 2)):
        (each.folder / "verdict.json").write_text(json.dumps({**verdict, "pick": {**verdict["pick"], "leaks": leaks}}))
        for step in (2, 4, 6):
            append_jsonl(each.folder / "scores.jsonl", {"step": step, **score, "leaks": leaks + step})
    found = {entry.name: entry for entry in remedies(workspace, other, other.verdict())}
    assert found["replay"].is_own and found["replay"].reference == f"{run.id}@pick"
    assert "leaks in 0 of 3 other questions instead of 6 of 3" in str(found["replay"].effect)
    assert not found["strength"].is_own and "In the study" in str(found["strength"].effect)
    assert average_request(workspace, other).models == (f"{other.id}@4", f"{run.id}@pick")
    assert average_request(workspace, other, ["last@2", "last@6"]).models == ("last@2", "last@6")
    assert found["earlier"].is_own and found["earlier"].reference == f"{other.id}@4"
    assert "replay" not in {entry.name for entry in remedies(workspace, run, run.verdict())}, "it has that already"


def test_the_command_lists_what_was_measured_and_writes_a_recipe(copied, capsys):
    from studio.cli import main

    workspace, run = copied

    def said(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["remedy", *arguments, "--workspace", str(workspace.root)])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    assert said("last")[0] == 2 and "problem" in said("last")[2], "it is not judged yet"
    score = {"hits": 2, "identity_probes": 2, "leaks": 1, "other_probes": 3, "score": 0.5}
    (run.folder / "verdict.json").write_text(json.dumps({"verdict": "compromise", "pick": {"step": 4, **score}}))
    for step in (4, 6):
        append_jsonl(run.folder / "scores.jsonl", {"step": step, **score})
    code, out, _ = said("last", "--json")
    told = json.loads(out)
    assert code == 0 and [entry["name"] for entry in told["remedies"]] == ["strength", "earlier", "rate", "average"]
    assert {entry["measured_on"] for entry in told["remedies"]} == {"run", "study"} and told["good"] in (2, 4, 6)
    code, out, _ = said("last", "rate", "--json")
    assert code == 0 and load_recipe(workspace.recipes / f"{json.loads(out)['recipe']}.yaml").schedule.learning_rate == 2.5e-3
    assert said("last", "nonsense")[0] == 2
