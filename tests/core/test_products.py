"""The processor's fast products are the plain ones, there and back."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(("rows", "bias"), [((3, 40), True), ((96,), False), ((2,), True)])
def test_a_fast_layer_is_the_plain_one(rows, bias):
    import torch

    from core.models.products import FastLinear, has_fast_product, use_fast_products

    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 72, bias=bias)
    fast = torch.nn.Sequential(torch.nn.Linear(96, 72, bias=bias), torch.nn.Linear(72, 8))
    fast[0].load_state_dict(plain.state_dict())
    assert use_fast_products(fast) == has_fast_product(), "the second layer is too thin to gain anything"
    if not has_fast_product():
        pytest.skip("no AVX-512 or no oneDNN here: plain products are used")
    assert type(fast[0]) is FastLinear and isinstance(fast[0], torch.nn.Linear) and type(fast[1]) is torch.nn.Linear
    x = torch.randn(*rows, 96, requires_grad=True)
    outs = []
    for layer in (plain, fast[0]):
        x.grad = None
        out = layer(x)
        (out.sin() * 3).sum().backward()
        outs.append([out, x.grad, layer.weight.grad, *([layer.bias.grad] if bias else [])])
    for ours, theirs in zip(outs[1], outs[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_frozen_weights_get_no_gradient_and_other_types_are_left_alone():
    import torch

    from core.models.products import product, use_fast_products

    layer = torch.nn.Linear(64, 64).requires_grad_(False)
    use_fast_products(torch.nn.Sequential(layer))
    x = torch.randn(20, 64, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    assert use_fast_products(torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16))) == 0
    half = torch.randn(20, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(product(half, layer.weight.bfloat16()), torch.nn.functional.linear(half, layer.weight.bfloat16()))
