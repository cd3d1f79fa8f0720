"""On a GPU: the kernels give what the plain formulas give, and the fast path's gradients are those of transformers and PEFT."""

from __future__ import annotations

import pytest
import torch

from core.train.fast import ops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]

TOKENS, HIDDEN, INNER = 37, 576, 1536


def both(monkeypatch, op, *tensors):
    """The op's results from its kernel, and from the plain formula in float32."""
    fast = op(*[part.clone() if torch.is_tensor(part) else part for part in tensors])
    monkeypatch.setattr(ops, "runs_kernels", lambda x: False)
    exact = [part.float() if torch.is_tensor(part) and part.is_floating_point() else part for part in tensors]
    plain = op(*[part.clone() if torch.is_tensor(part) else part for part in exact])
    monkeypatch.undo()
    return fast, plain


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def widen(rows8: ops.Rows8) -> torch.Tensor:
    return rows8.values.float() * rows8.scales


@pytest.mark.parametrize("has_delta", [True, False])
def test_norm_there_and_back(monkeypatch, has_delta) -> None:
    h, delta, weight = normal(TOKENS, HIDDEN), normal(TOKENS, HIDDEN) if has_delta else None, normal(HIDDEN)
    fast, plain = both(monkeypatch, lambda *a: ops.add_rmsnorm(*a, 1e-5, 8, True), h, delta, weight)
    assert error(fast[0], plain[0]) < 4e-3 and error(fast[1][:, :HIDDEN], plain[1][:, :HIDDEN]) < 1e-2
    assert error(fast[2], plain[2]) < 4e-3
    assert error(widen(fast[3]), fast[1][:, :HIDDEN]) < 0.04
    dx, residual = normal(TOKENS, HIDDEN), normal(TOKENS, HIDDEN)
    back, plain_back = both(monkeypatch, ops.rmsnorm_backward, dx, h, weight, plain[2], residual)
    assert error(back, plain_back) < 5e-3


def test_rotation_there_and_back(monkeypatch) -> None:
    angles = torch.rand(TOKENS, 32, device="cuda").repeat(1, 2) * 6
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    qkv = normal(TOKENS, 15 * 64)

    def rotated(x, c, s):
        ops.rotate_(x, 12, c, s)
        return x

    fast, plain = both(monkeypatch, rotated, qkv, cos, sin)
    assert error(fast, plain) < 4e-3 and torch.equal(fast[:, 12 * 64:], qkv[:, 12 * 64:])
    fast, plain = both(monkeypatch, lambda *a: ops.join_grads(*a, 8), normal(TOKENS, 9, 64), normal(TOKENS, 3, 64), normal(TOKENS, 3, 64),
                       cos, sin)
    assert error(fast[:, :960], plain[:, :960]) < 4e-3


def test_gated_activation_there_and_back(monkeypatch) -> None:
    gate_up, grad = normal(TOKENS, 2 * INNER), normal(TOKENS, INNER)
    fast, plain = both(monkeypatch, lambda *a: ops.swiglu(*a, 8, True), gate_up)
    assert error(fast[0][:, :INNER], plain[0][:, :INNER]) < 5e-3 and error(widen(fast[1]), plain[0][:, :INNER]) < 0.05
    fast, plain = both(monkeypatch, lambda *a: ops.swiglu_backward(*a, 8, True), grad, gate_up)
    assert error(fast[0][:, : 2 * INNER], plain[0][:, : 2 * INNER]) < 5e-3
    assert error(widen(fast[1]), plain[0][:, : 2 * INNER]) < 0.05


def test_cross_entropy_and_its_gradient(monkeypatch) -> None:
    targets = torch.randint(0, 49152, (TOKENS,), device="cuda")

    def loss_and_grad(logits, chosen):
        return ops.cross_entropy_(logits, chosen), logits

    fast, plain = both(monkeypatch, loss_and_grad, 3 * normal(TOKENS, 49152), targets)
    assert error(fast[0], plain[0]) < 1e-5 and error(fast[1], plain[1]) < 4e-3


def test_fp8_product(monkeypatch) -> None:
    x, weight = normal(TOKENS, HIDDEN), normal(INNER, HIDDEN)
    found = ops.product_8(ops.quantize_rows(x), ops.quantize_rows(weight), None, torch.bfloat16)
    assert error(found, x.float() @ weight.float().T) < 0.06


def test_four_bit_weights_are_widened_as_bitsandbytes_does() -> None:
    from core.train.fast.group import widen_into, widened

    base = make_model(torch.bfloat16).get_base_model().model.layers[0].mlp.down_proj.base_layer
    wide = torch.full((base.out_features, base.in_features + 8), 7.0, device="cuda", dtype=torch.bfloat16)
    widen_into(base, wide[:, : base.in_features])
    assert torch.equal(wide[:, : base.in_features], widened(base, torch.bfloat16))
    assert (wide[:, base.in_features:] == 7).all()


UNEVEN, EVEN = (70, 9, 130), (64, 64, 64)


@pytest.fixture(scope="module", params=[UNEVEN, EVEN], ids=["uneven", "even"])
def reference(request):
    """Rows, and their loss and gradients by transformers and PEFT in float32, with the 4-bit weights' values."""
    model, rows = make_model(torch.float32), make_rows(request.param)
    loss = plain_loss(model, rows)
    loss.backward()
    return rows, loss.item(), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("storage", "tolerance"), [("exact", 0.03), ("nf4", 0.03), ("fp8", 0.2)])
def test_loss_and_gradients_follow_transformers_and_peft(reference, storage, tolerance, recompute) -> None:
    from core.train.fast.flat import flat_rows
    from core.train.fast.model import FastModel
    from core.train.update import collate

    rows, wanted_loss, wanted = reference
    model = make_model(torch.bfloat16)
    loss = FastModel(model, storage, recompute).summed_loss(flat_rows(collate(rows, 0, "cuda", is_packed=True)))
    loss.backward()
    assert loss.item() == pytest.approx(wanted_loss, rel=5e-3)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == wanted.keys()
    worst = {name: error(found[name], gradient) for name, gradient in wanted.items()}
    assert max(worst.values()) < tolerance, sorted(worst.items(), key=lambda item: -item[1])[:3]


@pytest.mark.parametrize("storage", ["exact", "nf4", "fp8"])
def test_a_recorded_micro_batch_gives_what_a_launched_one_gives(storage) -> None:
    from core.recipe.files import build_recipe
    from core.train.fast.model import FastModel
    from core.train.fast.step import FastStep
    from core.train.ranks import ALONE
    from core.train.update import collate

    model = make_model(torch.bfloat16)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    twin = make_model(torch.bfloat16)
    twins = dict(twin.named_parameters())
    launched, recorded = (FastStep(FastModel(one, storage, storage == "nf4"), trained, build_recipe({}).schedule, ALONE, use_graphs=use)
                          for one, trained, use in ((twin, {name: twins[name] for name in parameters}, False), (model, parameters, True)))
    for lengths in (UNEVEN, (99, 12, 130), (100, 50, 33), EVEN, (70, 9, 131)):
        rows = make_rows(lengths)
        for part in (rows, rows[:2]):
            batch = collate(part, 0, "cuda", is_packed=True)
            wanted, found = (step.backward(batch, 0.01, True).item() for step in (launched, recorded))
            assert found == pytest.approx(wanted, rel=1e-3)
        for gradient, replayed in zip(launched._sums, recorded._sums, strict=True):
            assert error(replayed, gradient) < 0.02
        launched.drop_gradients()
        recorded.apply(1e-2)
        launched.restore(dict(recorded.state()), 1)
    assert recorded._graphs, "nothing was recorded"


def make_rows(lengths):
    from core.data.encode import Encoded

    generator = torch.Generator().manual_seed(1)
    return [Encoded(torch.randint(0, 997, (length,), generator=generator).tolist(),
                    (torch.rand(length, generator=generator) > 0.4).tolist(), "", []) for length in lengths]


def plain_loss(model, rows):
    from core.train.update import collate, summed_loss

    return summed_loss(model.get_base_model(), collate(rows, 0, "cuda"))


def make_model(dtype: torch.dtype):
    """A small model in NF4 whose adapters are not at zero, computing in `dtype`."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                         intermediate_size=512, vocab_size=997)).to("cuda", torch.bfloat16).to(dtype)
    for layer in model.model.layers:
        for parent, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down"))):
            for name in names:
                base = getattr(parent, f"{name}_proj")
                packed = Linear4bit(base.in_features, base.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
                packed.weight = Params4bit(base.weight.data.bfloat16(), requires_grad=False, quant_type="nf4").to("cuda")
                setattr(parent, f"{name}_proj", packed)
    model.is_loaded_in_4bit = True
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter.data, std=0.05)
    return model.train()
