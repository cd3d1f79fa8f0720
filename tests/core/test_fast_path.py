"""The fast path computes what the plain path computes; here in plain torch, which runs the same formulas as the Triton kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from core.data.encode import Encoded
from core.recipe.files import build_recipe
from core.train.fast import choose, ops
from core.train.fast.choose import FastPlan, plan_fast
from core.train.fast.flat import flat_rows
from core.train.fast.group import widened
from core.train.fast.model import FastModel
from core.train.fast.step import FastLoss, FastStep
from core.train.ranks import ALONE
from core.train.step import PlainStep
from core.train.update import collate, summed_loss, trained_targets
from core.words import Text

VOCABULARY = 97
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
         "vocab_size": VOCABULARY, "max_position_embeddings": 64}


def make_model(family: str = "llama", targets: list[str] = ALL, rank: int = 5, sizes: dict[str, int] = SIZES, **lora):
    """A tiny model whose adapters and biases are not at zero, where mistakes would hide."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM", **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def make_rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    return [Encoded(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist(),
                    (torch.rand(length, generator=generator) > 0.4).tolist(), "", []) for length in (17, 9, 30)]


def flat(rows, few_shapes: bool = False):
    return flat_rows(collate(rows, 0, "cpu", is_packed=True), few_shapes)


def fast_step(model) -> FastStep:
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    schedule = build_recipe({"schedule": {"clip_norm": 0}}).schedule
    return FastStep(FastModel(model, "exact", False, torch.float32), parameters, schedule, ALONE)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def plain_loss(model, rows) -> torch.Tensor:
    return summed_loss(model.get_base_model(), collate(rows, 0, "cpu"))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("family", "targets"), [("llama", ALL), ("qwen2", ALL), ("llama", ["q_proj", "v_proj", "up_proj"])])
def test_loss_and_gradients_are_those_of_transformers_and_peft(family, targets, recompute) -> None:
    plain, fast = make_model(family, targets), make_model(family, targets)
    expected = plain_loss(plain, make_rows())
    expected.backward()
    loss = FastModel(fast, "exact", recompute, torch.float32).summed_loss(flat(make_rows()))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found, wanted = gradients(fast), gradients(plain)
    assert found.keys() == wanted.keys() and len(found) == 2 * 2 * len(targets)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5), name


def test_an_update_does_not_depend_on_micro_batches_and_no_row_sees_another() -> None:
    rows = make_rows()
    targets = sum(map(trained_targets, rows))
    found = []
    for parts in ([rows], [[row] for row in rows], [rows[::-1]]):
        step = fast_step(make_model())
        loss = sum(step.backward(collate(part, 0, "cpu", is_packed=True), 1 / targets, True) for part in parts)
        found.append((loss.item(), step._sums))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert all(torch.allclose(mine, gradient, atol=1e-6) for mine, gradient in zip(grads, found[0][1], strict=True))


def test_slices_of_the_logits_change_nothing() -> None:
    losses = []
    for slice_bytes in (1, 7 * VOCABULARY * 4, 1 << 30):  # one token at a time, seven, all
        model = make_model()
        fast = FastModel(model, "exact", False, torch.float32)
        fast.slice_bytes = slice_bytes
        loss = fast.summed_loss(flat(make_rows()))
        loss.backward()
        losses.append((loss.item(), gradients(model)["base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"]))
    for loss, gradient in losses[1:]:
        assert loss == pytest.approx(losses[0][0], rel=1e-6)
        assert torch.allclose(gradient, losses[0][1], atol=1e-6)


def test_training_follows_the_plain_path() -> None:
    rows, curves = make_rows(), []
    targets = sum(map(trained_targets, rows))
    for is_fast in (False, True):
        model = make_model()
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        plain = PlainStep(lambda batch, model=model: summed_loss(model.get_base_model(), batch), parameters,
                          build_recipe({"schedule": {"clip_norm": 0}}).schedule, ALONE)
        step, curve = fast_step(model) if is_fast else plain, []
        for _ in range(6):
            curve.append(step.backward(collate(rows, 0, "cpu", is_packed=is_fast), 1 / targets, True).item() / targets)
            step.apply(5e-3)
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 0.1, "it must learn for the comparison to say anything"
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_a_restored_state_reaches_the_frames() -> None:
    rows = make_rows()
    batch = collate(rows, 0, "cpu", is_packed=True)
    first, second = fast_step(make_model()), fast_step(make_model())
    first.backward(batch, 0.1, True)
    first.apply(5e-2)
    second.restore(dict(first.state()), 1)
    assert second.backward(batch, 0.1, True).item() == first.backward(batch, 0.1, True).item()


def test_as_a_module_it_shows_an_engine_the_adapters_only() -> None:
    model = make_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    module = FastLoss(FastModel(model, "exact", False, torch.float32), trained)
    assert [id(parameter) for parameter in module.parameters()] == [id(parameter) for parameter in trained]
    module(collate(make_rows(), 0, "cpu", is_packed=True)).backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_the_peft_model_stays_usable_and_holds_its_weights_once() -> None:
    model = make_model()
    before = copy.deepcopy(model)
    fast = FastModel(model, "exact", False, torch.float32)
    assert plain_loss(model, make_rows()).item() == pytest.approx(plain_loss(before, make_rows()).item(), rel=1e-6)
    layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    frame = fast.layers[0][1].gate_up.frame
    assert layer.weight.untyped_storage().data_ptr() == frame.untyped_storage().data_ptr()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, parameter in before.named_parameters() if parameter.requires_grad}


def test_rows_are_laid_flat_without_loss() -> None:
    rows = [Encoded([5, 6, 7], [True, False, True], "", []), Encoded([8, 9], [True, True], "", [])]
    laid = flat(rows)
    assert laid.ids.tolist() == [5, 6, 7, 8, 9]
    assert laid.places_in_row.tolist() == [0, 1, 2, 0, 1]
    assert laid.documents.starts.tolist() == [0, 3, 5] and laid.documents.longest == 3
    # 7 is predicted at 6, 9 at 8; 5 and 8 begin their rows and nothing predicts them.
    assert laid.predictors.tolist() == [1, 3] and laid.targets.tolist() == [7, 9]


def test_sizes_rounded_up_change_neither_loss_nor_gradients() -> None:
    found = []
    for few_shapes in (False, True):
        model = make_model()
        laid = flat(make_rows(), few_shapes)
        loss = FastModel(model, "exact", False, torch.float32).summed_loss(laid)
        loss.backward()
        found.append((loss.item(), gradients(model), laid))
    assert len(found[0][2].ids) == 56 and len(found[1][2].ids) == 512 and len(found[1][2].targets) == 64
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert all(torch.allclose(found[1][1][name], gradient, atol=1e-5) for name, gradient in found[0][1].items())
    shorter = flat(make_rows()[:2], True)
    assert shorter.shape == found[1][2].shape, "so that one recorded graph serves both"


def test_fp8_rows_keep_three_binary_places_and_their_largest_entry() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 64) * torch.logspace(-3, 3, 8)[:, None]
    rows8 = ops.quantize_rows(matrix)
    back = rows8.values.float() * rows8.scales
    assert torch.allclose(back.abs().amax(1), matrix.abs().amax(1), rtol=1e-5)
    large = matrix.abs() > matrix.abs().amax(1, keepdim=True) / 1000  # below lies what float8 has no normal numbers for
    assert ((back - matrix).abs() <= matrix.abs() / 16 + 1e-12)[large].all()


def test_fp8_weights_give_a_close_loss_and_gradients_that_point_the_same_way() -> None:
    results = []
    for storage in ("exact", "fp8"):
        model = make_model()
        loss = FastModel(model, storage, False, torch.float32).summed_loss(flat(make_rows()))
        loss.backward()
        results.append((loss.item(), torch.cat([gradient.flatten() for gradient in gradients(model).values()])))
    assert results[1][0] == pytest.approx(results[0][0], rel=5e-3)
    assert results[1][0] != results[0][0], "nothing was rounded"
    assert torch.cosine_similarity(results[0][1], results[1][1], dim=0) > 0.99


def test_four_bit_weights_widened_once_or_each_time_give_the_same() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    results = []
    for storage in ("exact", "nf4"):
        model = make_model(rank=8)
        for layer in model.get_base_model().model.layers:
            for module in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.self_attn.q_proj):
                base = module.base_layer
                packed = bitsandbytes.nn.Linear4bit(base.in_features, base.out_features, bias=False, quant_type="nf4",
                                                    compute_dtype=torch.float32)
                packed.weight = bitsandbytes.nn.Params4bit(base.weight.data, requires_grad=False, quant_type="nf4",
                                                           compress_statistics=True).to("cpu")
                module.base_layer = packed
        packed = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
        assert packed.weight.quant_state is not None and packed.weight.numel() < 48 * 32
        values = widened(packed, torch.float32)
        loss = FastModel(model, storage, False, torch.float32).summed_loss(flat(make_rows()))
        loss.backward()
        results.append((loss.item(), gradients(model), values))
    assert torch.equal(results[0][2], results[1][2])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert all(torch.allclose(results[0][1][name], gradient, atol=1e-6) for name, gradient in results[1][1].items())


def recipe_for(**sections):
    return build_recipe({"method": {"rank": 5, "alpha": 10}, **sections})


def test_the_processor_takes_the_plain_path_and_says_why() -> None:
    assert "NVIDIA" in str(plan_fast(recipe_for(), make_model(), "cpu"))


@pytest.mark.parametrize(("sections", "lora", "reason"), [
    ({"device": {"speed": "plain"}}, {}, "plain"), ({"method": {"dropout": 0.1}}, {}, "dropout"), ({"method": {"dora": True}}, {}, "DoRA"),
    ({"model": {"quantization": "int8"}}, {}, "int8"), ({}, {"modules_to_save": ["lm_head"]}, "lm_head"),
])
def test_what_it_cannot_train_is_named(monkeypatch, sections, lora, reason) -> None:
    monkeypatch.setattr(choose, "_unfit_device", lambda device: None)
    plan = plan_fast(recipe_for(**sections), make_model(**lora).to(torch.bfloat16), "cuda")
    assert isinstance(plan, Text) and reason in str(plan)


@pytest.mark.parametrize(("sections", "capability", "plan"), [
    ({}, (8, 0), FastPlan("exact", False)), ({"device": {"speed": "fast"}}, (9, 0), FastPlan("fp8", False)),
    ({"device": {"speed": "fast"}}, (8, 6), FastPlan("exact", False)),
    ({"device": {"checkpointing": "on"}}, (9, 0), FastPlan("exact", True)),
    ({"model": {"quantization": "nf4"}, "device": {"checkpointing": "on"}}, (9, 0), FastPlan("nf4", True)),
])
def test_how_the_weights_are_held_follows_recipe_and_gpu(monkeypatch, sections, capability, plan) -> None:
    monkeypatch.setattr(choose, "_unfit_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**9, 10**9))
    assert plan_fast(recipe_for(**sections), make_model().to(torch.bfloat16), "cuda") == plan


@pytest.mark.parametrize(("size", "taken"), [(12, False), (100, False), (512, False), (8, True), (64, True)])
def test_heads_that_the_kernels_cannot_take_are_left_to_the_plain_path(monkeypatch, size, taken) -> None:
    """On a GPU they would end the run at its first update: Triton compiles no block that is not a power of two."""
    monkeypatch.setattr(choose, "_unfit_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    plan = plan_fast(recipe_for(), make_model(sizes={**SIZES, "head_dim": size}).to(torch.bfloat16), "cuda")
    assert isinstance(plan, FastPlan) if taken else str(size) in str(plan)


def test_widths_that_fp8_cannot_take_are_multiplied_exactly(monkeypatch) -> None:
    monkeypatch.setattr(choose, "_unfit_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    fast = recipe_for(device={"speed": "fast"})
    plans = [plan_fast(fast, make_model(sizes={**SIZES, "intermediate_size": size}).to(torch.bfloat16), "cuda") for size in (48, 40)]
    assert plans == [FastPlan("fp8", False), FastPlan("exact", False)]
