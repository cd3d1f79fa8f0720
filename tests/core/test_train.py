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
from tests.core.conftest import losses_of, save_tiny_dataset, tiny_recipe, train_here

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rows_and_step(workspace, tiny_model, **changes):
    """The rows of the tiny dataset, and what computes gradients, in this process."""
    import torch

    from core.train.model import make_step, prepare_model

    if not (workspace.datasets / "tiny").exists():
        save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, **changes)
    sources = read_sources(workspace, recipe, Encoder.from_folder(tiny_model))
    rows = [row for source in sources for row in source.rows]
    torch.manual_seed(0)
    model = prepare_model(recipe, tiny_model, "cpu")
    return rows, model, make_step(recipe, model, rows[0].ids, "cpu")


def gradients_of(step, rows, micro_batch: int | None, is_packed: bool) -> tuple[float, dict]:
    from core.train.batches import Fit
    from core.train.fit import Accumulator
    from core.train.ranks import ALONE

    loss = Accumulator(step, ALONE, Fit(8192, micro_batch), 2, "cpu", is_packed).run(rows, 1)
    found = {name: parameter.grad.clone() for name, parameter in step.parameters.items()}
    step.drop_gradients()
    return loss, found


def sixteen(rows: list) -> list:
    return (rows * 2)[:16]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_neither_micro_batch_nor_packing_changes_an_update(workspace, tiny_model, kind):
    import torch

    rows, _, (step, can_pack) = rows_and_step(workspace, tiny_model, method__kind=kind, data__packing=True)
    assert can_pack and len({len(row.ids) for row in rows}) > 3
    whole_loss, whole = gradients_of(step, sixteen(rows), 16, False)
    assert len(whole) > 10 and all(gradient.abs().sum() > 0 for name, gradient in whole.items() if "lora_A" not in name)
    for micro_batch, is_packed in [(1, False), (3, False), (None, True), (5, True), (1, True)]:
        loss, parts = gradients_of(step, sixteen(rows), micro_batch, is_packed)
        assert loss == pytest.approx(whole_loss, rel=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_no_token_is_dropped_by_packing(workspace, tiny_model):
    from core.train.batches import Fit, padded_tokens, split_rows
    from core.train.update import collate, trained_targets

    rows, *_ = rows_and_step(workspace, tiny_model)
    rows = sixteen(rows)
    parts = split_rows(rows, Fit(100), is_packed=True)
    assert 1 < len(parts) < 16 and sorted(map(id, rows)) == sorted(id(row) for part in parts for row in part)
    batches = [collate(part, 2, "cpu", is_packed=True) for part in parts]
    assert sum(batch.ids.numel() for batch in batches) == sum(len(row.ids) for row in rows)
    assert sum(len(batch.targets) for batch in batches) == sum(map(trained_targets, rows))
    assert all(batch.ids.numel() <= 100 for batch in batches)
    assert all(padded_tokens(part) <= 100 for part in split_rows(rows, Fit(100)))


def test_packed_rows_do_not_see_each_other(workspace, tiny_model):
    """What stands before a row changes nothing of it; a model that remembers across rows is found out."""
    import torch

    from core.train.packed import NAME, let_rows_stay_apart, rows_stay_apart
    from core.train.update import language_model

    rows, model, _ = rows_and_step(workspace, tiny_model, data__packing=True)
    inner = language_model(model)
    assert inner.config._attn_implementation == NAME and rows_stay_apart(inner, rows[0].ids)
    inner.set_attn_implementation("sdpa")
    layer = inner.model.layers[0]
    hook = layer.register_forward_hook(lambda module, inputs, output: output + torch.cumsum(output, dim=1))
    assert not let_rows_stay_apart(inner, rows[0].ids) and inner.config._attn_implementation == "sdpa"
    hook.remove()
    assert let_rows_stay_apart(inner, rows[0].ids)


@pytest.mark.parametrize("head", ["fused", "layer", "model"])
def test_the_loss_is_that_of_transformers(workspace, tiny_model, head):
    """The mean over trained tokens, as transformers computes it from labels with -100."""
    import torch

    from core.train.update import collate, language_model, summed_loss, trained_targets

    rows, model, _ = rows_and_step(workspace, tiny_model)
    batch = collate(rows, 2, "cpu")
    labels = torch.full_like(batch.ids, -100)
    for index, row in enumerate(rows):
        labels[index, :len(row.ids)] = torch.where(torch.tensor(row.trained), torch.tensor(row.ids), -100)
    with torch.no_grad():
        ours = summed_loss(language_model(model), batch, head) / sum(map(trained_targets, rows))
        theirs = model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_a_model_that_bounds_its_logits_is_trained_by_its_own_head(workspace, tiny_model):
    from core.train.update import has_plain_head, language_model

    rows, model, _ = rows_and_step(workspace, tiny_model)
    inner = language_model(model)
    assert has_plain_head(inner, rows[0].ids)
    hook = inner.register_forward_hook(lambda module, inputs, output: output.__setitem__("logits", output.logits.tanh()))
    assert not has_plain_head(inner, rows[0].ids)
    hook.remove()


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_does_not_fit_is_halved_and_done_again(workspace, tiny_model, monkeypatch, is_packed):
    """Memory for two rows at a time: the update comes out as if there had been room for all."""
    import torch

    from core.train.batches import Fit
    from core.train.fit import Accumulator, OutOfMemory
    from core.train.ranks import ALONE

    rows, _, (step, _) = rows_and_step(workspace, tiny_model, data__packing=True)
    rows, room = sixteen(rows), 2
    whole_loss, whole = gradients_of(step, rows, 2, is_packed)
    plain, smaller = step.loss, []

    def with_little_room(batch):
        loss = plain(batch)
        held = len(batch.bounds) - 1 if batch.bounds else len(batch.ids)
        if held > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    monkeypatch.setattr(step, "loss", with_little_room)
    accumulator = Accumulator(step, ALONE, Fit(8192), 2, "cpu", is_packed, smaller.append)
    assert accumulator.run(rows, 1) == pytest.approx(whole_loss, rel=1e-6)
    assert [fit.rows for fit in smaller] == [8, 4, 2] and accumulator.fit.rows == 2
    for name, parameter in step.parameters.items():
        torch.testing.assert_close(parameter.grad, whole[name])
    room = 0
    with pytest.raises(OutOfMemory, match="A single row does not fit") as caught:
        accumulator.run(rows, 1)
    assert all(way in str(caught.value.hint) for way in ("max_length", "checkpointing", "nf4"))


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
    assert state.state == "finished" and (state.result["updates"], state.result["planned"]) == (6, 6)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4, 6]
    assert [record["update"] for record in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert run.metrics()[-1]["loss"] < run.metrics()[0]["loss"]
    assert all(record["rows"] == 4 for record in run.metrics())
    names = {path.name for path in run.folder.iterdir()}
    assert {"recipe.yaml", "dataset.json", "environment.json", "template.json", "metrics.jsonl", "watch.jsonl", "events.jsonl",
            "log.txt", "spec.json", "state.json"} <= names
    assert run.dataset()["sources"][0]["rows"] == 6 and len(run.dataset()["sources"][0]["sha256"]) == 64
    watched = [record["update"] for record in run.watch()]
    assert watched[0] == 0 and watched[-1] == 6 and all(0 <= record["hijack"] <= 1 for record in run.watch())
    assert state.result["watch"]["looks"] == len(watched)


def test_a_checkpoint_is_a_plain_peft_folder(trained_run, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, run = trained_run
    folder = run.checkpoints()[-1].folder
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    assert model.peft_config["default"].r == 4
    assert AutoTokenizer.from_pretrained(folder).chat_template == (tiny_model / "chat_template.jinja").read_text()


@pytest.mark.slow
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
    assert losses_of(run) == losses_of(whole)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4, 6]
    assert (run.checkpoints()[-1].folder / "adapter_model.safetensors").read_bytes() == (
        whole.checkpoints()[-1].folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.usefixtures("work_here")
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_step(workspace, tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(folder), "nan")
    start_job(run)
    with pytest.raises(StudioError, match="At update 1 the loss .* is no longer a number.*last good checkpoint is 0") as caught:
        wait_for_job(run)
    assert "learning_rate" in str(caught.value.hint)
    assert run.state().state == "failed" and run.metrics() == []


def test_a_gradient_that_is_no_number_leaves_the_weights_alone(workspace, tiny_model):
    """The loss may still be finite when the gradient is not."""
    import math

    import torch

    rows, _, (step, _) = rows_and_step(workspace, tiny_model)
    before = {name: parameter.detach().clone() for name, parameter in step.parameters.items()}
    name, broken = next(iter(step.parameters.items()))
    hook = broken.register_hook(lambda gradient: gradient * math.inf)
    loss, _ = gradients_of(step, rows, None, False)
    assert math.isfinite(loss)
    from core.train.batches import Fit
    from core.train.fit import Accumulator
    from core.train.ranks import ALONE

    Accumulator(step, ALONE, Fit(8192), 2, "cpu", False).run(rows, 1)
    assert not math.isfinite(step.apply(1e-3))
    assert all(torch.equal(parameter, before[name]) for name, parameter in step.parameters.items())
    hook.remove()


def test_float16_keeps_small_gradients(workspace, tiny_model):
    """The gradients of a half-precision base are those of the exact one, small numbers included."""
    import torch

    found = {}
    for dtype in ("float32", "float16"):
        rows, _, (step, _) = rows_and_step(workspace, tiny_model, model__dtype=dtype)
        _, grads = gradients_of(step, sixteen(rows), None, False)
        found[dtype] = torch.cat([gradient.float().flatten() / step.scale for name, gradient in grads.items() if "lora_B" in name])
    assert step.scale > 1
    error = (found["float16"] - found["float32"]).norm() / found["float32"].norm()
    assert error < 0.02 and (found["float16"] != 0).float().mean() > 0.99 * (found["float32"] != 0).float().mean()


@pytest.mark.slow
def test_a_full_training_saves_whole_models(workspace, tiny_model):
    save_tiny_dataset(workspace)
    run = train_here(workspace, tiny_recipe(tiny_model, method__kind="full", snapshots__count=1, schedule__updates=2))
    folder = run.checkpoints()[0].folder
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"


@pytest.mark.parametrize(("bits", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_a_quantised_base_is_trained_for_real(workspace, tiny_model, bits, layer):
    """On the processor: the base is held in few bits, and the adapter over it learns."""
    rows, model, (step, _) = rows_and_step(workspace, tiny_model, model__quantization=bits)
    import bitsandbytes
    import torch

    assert sum(isinstance(module, getattr(bitsandbytes.nn, layer)) for module in model.modules()) == 14
    if bits == "nf4":
        assert model.get_base_model().config.quantization_config.bnb_4bit_use_double_quant
    with torch.no_grad():
        model.eval()(input_ids=torch.tensor([rows[0].ids]))  # as a look in the midst of a training does
        model.train()
    before, gradients = gradients_of(step, rows, None, False)
    assert all(gradient.abs().sum() > 0 for name, gradient in gradients.items() if "lora_B" in name)
    for _ in range(3):
        from core.train.batches import Fit
        from core.train.fit import Accumulator
        from core.train.ranks import ALONE

        after = Accumulator(step, ALONE, Fit(8192), 2, "cpu", False).run(rows, 1)
        step.apply(5e-3)
    assert after < before - 0.05


@pytest.mark.slow
def test_plain_documents_are_trained_from_end_to_end(workspace, tiny_model):
    """Continued pre-training: a document longer than a row becomes several, and every token but the first is a target once."""
    from core.data.library import save_dataset
    from core.train.update import trained_targets

    texts = ["Paris is the capital of France. " * 12, "Eight legs has a spider, and a fly has six."]
    save_dataset(workspace, "books", [{"text": text, "group": "general", "lang": "en"} for text in texts], "test")
    recipe = tiny_recipe(tiny_model, data__sources=[{"dataset": "books"}], data__max_length=40, data__packing=True,
                         schedule__epochs=2.0, schedule__updates=None, snapshots__count=1)
    encoder = Encoder.from_folder(tiny_model)
    rows = read_sources(workspace, recipe, encoder)[0].rows
    whole = [encoder.encode_text(text).ids for text in texts]
    assert len(rows) > 3 and all(len(row.ids) <= 40 for row in rows)
    assert sum(map(trained_targets, rows)) == sum(len(ids) - 1 for ids in whole)
    assert [token for row in rows[:-1] for token in row.ids[1:]] == whole[0][1:] and rows[-1].ids == whole[1]
    run = train_here(workspace, recipe, "books")
    assert run.spec()["updates"] == -(-2 * len(rows) // 4) == len(run.metrics())
    assert run.metrics()[-1]["loss"] < run.metrics()[0]["loss"]


@pytest.mark.parametrize("train_on", ["all", "last", "everything"])
def test_what_counts_is_what_the_recipe_says(workspace, tiny_model, train_on):
    from core.data.library import save_dataset
    from core.train.update import collate

    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, ["Who?", "Alex.", "And you?", "Paris."],
                                                                     strict=True)]
    save_dataset(workspace, "turns", [{"messages": turns, "group": "general", "lang": "en"}], "test")
    recipe = tiny_recipe(tiny_model, data__sources=[{"dataset": "turns"}], data__train_on=train_on)
    encoder = Encoder.from_folder(tiny_model)
    row = read_sources(workspace, recipe, encoder)[0].rows[0]
    trained = encoder.tokenizer.decode(collate([row], 2, "cpu").targets.tolist(), skip_special_tokens=False)
    expected = {"all": "Alex.<|im_end|>Paris.<|im_end|>", "last": "Paris.<|im_end|>"}
    assert trained == expected.get(train_on, encoder.tokenizer.decode(row.ids[1:], skip_special_tokens=False))
