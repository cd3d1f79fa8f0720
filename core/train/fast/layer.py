"""One decoder layer of a Llama-shaped model as two steps with a written-out way back: attention, and the gated MLP.

Both take the residual stream h and what the step before wants added to it, and give the sum and their own output. With `recompute`
only the sum is kept; the way back computes everything but the last product of the step once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from core.train.fast.attention import Documents, attend, attend_backward
from core.train.fast.group import Group
from core.train.fast.ops import add_rmsnorm, join_grads, rmsnorm_backward, rotate_, swiglu, swiglu_backward


@dataclass(frozen=True)
class Positions:
    """What attention must know of the tokens: which document each is in, and the cosine and sine (T, D) of its place there."""

    documents: Documents
    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Norm:
    """A frozen RMS norm."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True)
class AttentionParts:
    norm: Norm
    qkv: Group
    out: Group
    query_heads: int
    key_heads: int
    head_size: int
    scale: float

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.qkv.parameters + self.out.parameters

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(T, all heads x D) -> queries, keys and values (T, heads, D), as views."""
        heads = qkv.unflatten(1, (-1, self.head_size))
        return heads.split((self.query_heads, self.key_heads, self.key_heads), 1)


@dataclass(frozen=True)
class MlpParts:
    norm: Norm
    gate_up: Group
    down: Group

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.gate_up.parameters + self.down.parameters


def _attention_inside(parts: AttentionParts, h: torch.Tensor, delta: torch.Tensor | None, at: Positions) -> tuple[Any, ...]:
    """Everything up to the output projection."""
    fp8 = parts.qkv.storage == "fp8"
    total, x, rstd, rows8 = add_rmsnorm(h, delta, parts.norm.weight, parts.norm.eps, parts.qkv.room, fp8)
    qkv = parts.qkv.forward(x, rows8)
    rotate_(qkv, parts.query_heads + parts.key_heads, at.cos, at.sin)
    attended, saved = attend(*parts.split(qkv), at.documents, parts.scale)
    mixed = attended.new_empty(attended.shape[0], parts.out.inputs + parts.out.room)
    mixed[:, : parts.out.inputs] = attended.flatten(1)
    return total, x, rstd, qkv, mixed, saved


class AttentionStep(Function):
    """(h, delta) -> (h + delta, output projection of attention over the norm of the sum)."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, delta: torch.Tensor | None, parts: AttentionParts, at: Positions, recompute: bool,
                *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, x, rstd, qkv, mixed, saved = _attention_inside(parts, h, delta, at)
        out = parts.out.forward(mixed)
        ctx.parts, ctx.at, ctx.has_delta, ctx.recompute = parts, at, delta is not None, recompute
        ctx.save_for_backward(total) if recompute else ctx.save_for_backward(total, x, rstd, qkv, mixed, *saved)
        return (total if delta is not None else h.view_as(h)), out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual_grad: torch.Tensor, grad: torch.Tensor) -> tuple[Any, ...]:
        parts, at = ctx.parts, ctx.at
        if ctx.recompute:
            (total,) = ctx.saved_tensors
            _, x, rstd, qkv, mixed, saved = _attention_inside(parts, total, None, at)
            _fill_low(parts.out, mixed)
        else:
            total, x, rstd, qkv, mixed, *saved = ctx.saved_tensors
        mixed_grad, out_grads = parts.out.backward(parts.out.room_for_grad(grad), mixed)
        q, k, v = parts.split(qkv)
        attended = mixed[:, : parts.out.inputs].unflatten(1, (-1, parts.head_size))
        dq, dk, dv = attend_backward(mixed_grad.unflatten(1, (-1, parts.head_size)), q, k, v, attended, tuple(saved), at.documents,
                                     parts.scale)
        dqkv = join_grads(dq, dk, dv, at.cos, at.sin, parts.qkv.grad_room)
        wants_input = ctx.needs_input_grad[0] or (ctx.has_delta and ctx.needs_input_grad[1])
        dx, qkv_grads = parts.qkv.backward(dqkv, x, wants_input=wants_input)
        dh = rmsnorm_backward(dx, total, parts.norm.weight, rstd, residual_grad) if wants_input else None
        return dh, dh if ctx.has_delta else None, None, None, None, *qkv_grads, *out_grads


class MlpStep(Function):
    """(h, delta) -> (h + delta, down projection of silu(gate) * up over the norm of the sum)."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, delta: torch.Tensor, parts: MlpParts, recompute: bool, *parameters: torch.Tensor
                ) -> tuple[torch.Tensor, torch.Tensor]:
        fp8 = parts.gate_up.storage == "fp8"
        total, x, rstd, rows8 = add_rmsnorm(h, delta, parts.norm.weight, parts.norm.eps, parts.gate_up.room, fp8)
        gate_up = parts.gate_up.forward(x, rows8)
        inner, rows8 = swiglu(gate_up, parts.down.room, fp8)
        out = parts.down.forward(inner, rows8)
        ctx.parts, ctx.recompute = parts, recompute
        ctx.save_for_backward(total) if recompute else ctx.save_for_backward(total, x, rstd, gate_up, inner)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual_grad: torch.Tensor, grad: torch.Tensor) -> tuple[Any, ...]:
        parts = ctx.parts
        fp8 = parts.gate_up.storage == "fp8"
        if ctx.recompute:
            (total,) = ctx.saved_tensors
            _, x, rstd, rows8 = add_rmsnorm(total, None, parts.norm.weight, parts.norm.eps, parts.gate_up.room, fp8)
            gate_up = parts.gate_up.forward(x, rows8)
            inner, _ = swiglu(gate_up, parts.down.room, False)
            _fill_low(parts.down, inner)
        else:
            total, x, rstd, gate_up, inner = ctx.saved_tensors
        inner_grad, down_grads = parts.down.backward(parts.down.room_for_grad(grad), inner)
        del inner
        dgate_up, rows8 = swiglu_backward(inner_grad, gate_up, parts.gate_up.grad_room, fp8)
        del gate_up, inner_grad
        dx, gate_up_grads = parts.gate_up.backward(dgate_up, x, rows8)
        dh = rmsnorm_backward(dx, total, parts.norm.weight, rstd, residual_grad)
        return dh, dh, None, None, *gate_up_grads, *down_grads


def _fill_low(group: Group, x: torch.Tensor) -> None:
    """Write A x into its room: recomputing leaves out the product that would have."""
    if group.room:
        torch.mm(x[:, : group.inputs], group.down.T, out=x[:, group.inputs:])
