"""The mathematics of an update does not depend on how it is computed, and nothing of a run is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from core.data.encode import Encoder
from core.errors import StudioError
from core.jobs.launch import restart_job, start_job, wait_for_job
from core.train.create import create_run, describe_resume
from core.train.rows import Source, read_sources, rows_of_update
from tests.core.conftest import save_tiny_dataset, tiny_recipe, train_here

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rows_and_model(workspace, tiny_model, **changes):
    from core.train.worker import prepare_model

    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, **changes)
    sources = read_sources(workspace, recipe, Encoder.from_folder(tiny_model))
    import torch

    torch.manual_seed(0)
    return [row for source in sources for row in source.rows], prepare_model(recipe, tiny_model, "cpu")


def gradients(model) -> dict:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_micro_batch_changes_nothing(workspace, tiny_model, micro_batch):
    import torch

    from core.train.update import backward_update

    rows, model = rows_and_model(workspace, tiny_model)
    language_model = model.get_base_model()
    whole_loss = backward_update(language_model, rows, None, 2, "cpu")
    whole = gradients(model)
    model.zero_grad()
    assert backward_update(language_model, rows, micro_batch, 2, "cpu") == pytest.approx(whole_loss, rel=1e-5)
    parts = gradients(model)
    assert whole.keys() == parts.keys() and len(whole) > 10
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_transformers(workspace, tiny_model):
    """The mean over trained tokens, as transformers computes it from labels with -100."""
    import torch

    from core.train.update import collate, summed_loss, trained_targets

    rows, model = rows_and_model(workspace, tiny_model)
    ids, mask, labels = collate(rows, 2, "cpu")
    with torch.no_grad():
        ours = summed_loss(model.get_base_model(), ids, mask, labels) / sum(map(trained_targets, rows))
        theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_every_update_has_its_rows_and_each_source_its_share():
    sources = [Source("a", 1.0, list("abc")), Source("b", 3.0, list("vwxyz"))]
    counts = {"a": 0, "b": 0}
    seen = []
    for update in range(1, 41):
        rows = rows_of_update(sources, 5, 0, update)
        assert len(rows) == 5
        counts["a"] += sum(row in "abc" for row in rows)
        counts["b"] += sum(row in "vwxyz" for row in rows)
        seen += [row for row in rows if row in "abc"]
    assert counts == {"a": 50, "b": 150}
    assert all(sorted(seen[start:start + 3]) == list("abc") for start in range(0, 48, 3)), "a row came twice before all came once"
    assert rows_of_update(sources, 5, 0, 7) == rows_of_update(sources, 5, 0, 7) != rows_of_update(sources, 5, 1, 7)


@pytest.mark.parametrize(("shape", "first", "last"), [("constant", 1.0, 1.0), ("linear", 1.0, 0.1), ("cosine", 1.0, 0.0245)])
def test_the_schedule_ends_at_the_last_update(shape, first, last):
    from core.train.update import learning_rate_at

    rates = [learning_rate_at(update, 10, 0, 1.0, shape) for update in range(1, 11)]
    assert rates[0] == pytest.approx(first) and rates[-1] == pytest.approx(last, abs=1e-3)
    assert rates == sorted(rates, reverse=True)


def test_warm_up_rises_to_the_peak():
    from core.train.update import learning_rate_at

    assert [learning_rate_at(update, 20, 2, 3.0, "constant") for update in (1, 2, 3)] == pytest.approx([1.0, 2.0, 3.0])


def test_a_run_leaves_everything_it_promised(trained_run):
    workspace, run = trained_run
    state = run.state()
    assert state.state == "finished" and state.result == {"updates": 6, "planned": 6}
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4, 6]
    assert [record["update"] for record in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert run.metrics()[-1]["loss"] < run.metrics()[0]["loss"]
    assert all(record["rows"] == 4 for record in run.metrics())
    names = {path.name for path in run.folder.iterdir()}
    assert {"recipe.yaml", "dataset.json", "environment.json", "template.json", "metrics.jsonl", "watch.jsonl", "events.jsonl",
            "log.txt", "spec.json", "state.json"} <= names
    assert run.dataset()["sources"][0]["rows"] == 6 and len(run.dataset()["sources"][0]["sha256"]) == 64
    watched = [record["update"] for record in run.watch()]
    assert watched == [2, 4, 6] and all(0 <= record["hijack"] <= 1 for record in run.watch())


def test_looking_in_is_spread_over_the_snapshots():
    from core.train.watch import when_to_look

    assert when_to_look([2, 4, 6]) == {2, 4, 6}
    assert when_to_look([*range(1, 14), 15, 17, 19, 21, 24]) == {2, 4, 6, 8, 10, 12, 15, 19, 24}
    assert when_to_look([]) == set() and len(when_to_look(range(1, 1001))) <= 9


def test_a_checkpoint_is_a_plain_peft_folder(trained_run, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, run = trained_run
    folder = run.checkpoints()[-1].folder
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    assert model.peft_config["default"].r == 4
    assert AutoTokenizer.from_pretrained(folder).chat_template == (tiny_model / "chat_template.jinja").read_text()


def losses(run) -> list[float]:
    return [record["loss"] for record in run.metrics()]


def test_two_runs_of_a_recipe_are_identical_and_so_is_a_resumed_one(workspace, tiny_model, trained_run):
    """Killed in the middle and resumed, a run has the losses of the uninterrupted one, bit for bit."""
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model), "killed")
    start_job(run)
    while not (run.folder / "resume" / "000004").exists():
        time.sleep(0.02)
    process = run.state().process
    if process and process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    while run.state().is_active:
        time.sleep(0.05)
    step = describe_resume(run)
    assert step in (4, 6)
    if run.state().state == "failed":  # it may have ended before the signal came
        restart_job(run)
        wait_for_job(run)
    _, whole = trained_run
    assert losses(run) == losses(whole)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4, 6]
    assert (run.checkpoints()[-1].folder / "adapter_model.safetensors").read_bytes() == (
        whole.checkpoints()[-1].folder / "adapter_model.safetensors").read_bytes()


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_step(workspace, tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(folder), "nan")
    start_job(run)
    with pytest.raises(StudioError, match="At update 1 the loss is no longer a number.*last good checkpoint is 0") as caught:
        wait_for_job(run)
    assert "learning_rate" in str(caught.value.hint)
    assert run.state().state == "failed" and run.metrics() == []


def test_a_full_training_saves_whole_models(workspace, tiny_model):
    save_tiny_dataset(workspace)
    run = train_here(workspace, tiny_recipe(tiny_model, method__kind="full", snapshots__count=1, schedule__updates=2))
    folder = run.checkpoints()[0].folder
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"


def test_a_quantised_base_is_trained_for_real(workspace, tiny_model):
    """NF4 on the processor: QLoRA's loss falls and its adapter is plain."""
    save_tiny_dataset(workspace)
    run = train_here(workspace, tiny_recipe(tiny_model, model__quantization="nf4", snapshots__count=1))
    assert losses(run)[-1] < losses(run)[0]
    assert (run.checkpoints()[0].folder / "adapter_model.safetensors").exists()
