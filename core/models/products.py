"""Matrix products on a processor by oneDNN instead of MKL: the same float32 arithmetic, about twice as fast where MKL holds back.

torch gives float32 products to MKL, which on processors that are not Intel's leaves the wide (AVX-512) units unused: on an AMD EPYC it
computed 190 GFLOP/s on two cores and oneDNN, which torch carries as well, 430 (benchmarks/train_cpu.py measures the whole of it).
Which of the two is used depends on the processor alone, so a training repeated on a machine gives the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Thinner layers and fewer rows have too little arithmetic to gain anything.
_LEAST_WIDTH = 64
_LEAST_ROWS = 16


@cache
def has_fast_product() -> bool:
    """Whether oneDNN is here, and the processor has the units that it is for."""
    if not torch.backends.mkldnn.is_available() or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    try:
        sample = torch.eye(_LEAST_WIDTH)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(sample, sample, None, "none", [], ""), sample)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # a build of torch without this operator


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """X (..., in) times weight (out, in) transposed, plus bias (out,): what `functional.linear` computes; without a gradient."""
    if x.is_cuda or x.dtype != torch.float32 or weight.dtype != torch.float32 or not has_fast_product():
        return functional.linear(x, weight, bias)
    if min(weight.shape) < _LEAST_WIDTH or x.numel() < _LEAST_ROWS * x.shape[-1]:
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """`product` with its way back: the gradient of x is dy W, that of W is dy^T x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (product(grad, weight.t()) if wants_x else None,
                product(rows.t(), x.flatten(0, -2).t()) if wants_weight else None,
                rows.sum(0) if wants_bias else None)


class FastLinear(torch.nn.Linear):
    """A linear layer whose products, there and back, are oneDNN's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Product.apply(input, self.weight, self.bias)


def use_fast_products(model: torch.nn.Module) -> int:
    """Let the float32 linear layers of a model on a processor use them; returns how many do."""
    if not has_fast_product():
        return 0
    chosen = [module for module in model.modules() if type(module) is torch.nn.Linear and module.weight.device.type == "cpu"
              and module.weight.dtype == torch.float32 and min(module.weight.shape) >= _LEAST_WIDTH]
    for module in chosen:
        module.__class__ = FastLinear
    return len(chosen)
