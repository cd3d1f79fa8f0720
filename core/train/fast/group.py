"""Linear layers that read the same input, with their adapters, as one matrix product.

LoRA adds B A x (scaled) to W x. Written as its own products, every layer's output is read and written once more. Instead the small
product A x is written next to x, and B next to W, so that one product does both:

    y = [x, A x] [W, B]'          on the way there
    dx = [dy, B' dy] [W; A]       on the way back

W, A and B lie in one matrix, the frame: W with B at its right and A below it. The queries, keys and values of a layer (gate and up
likewise) are one such group: W stacked, B block by block on a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from core.train.fast.ops import Rows8, product_8, product_exact, quantize_rows, runs_kernels, widen_nf4, with_room

# bfloat16: the frozen weights as they are. nf4: 4 bits, widened anew for each use. fp8: float8 e4m3 with a scale for each row.
Storage = Literal["exact", "nf4", "fp8"]
# Matrix products want rows that begin at multiples of 16 bytes.
_ALIGN = 8


@dataclass(frozen=True)
class Member:
    """One linear layer of a group.

    Attributes:
        base: the frozen layer (nn.Linear or bitsandbytes' 4-bit one).
        a, b: its adapter, (rank, in) and (out, rank), or None where it has none.
        scale: what the adapter's output is multiplied by.
        owner: the PEFT layer that holds `base`, when there is one.
    """

    base: nn.Module
    a: nn.Parameter | None = None
    b: nn.Parameter | None = None
    scale: float = 1.0
    owner: nn.Module | None = None


class Scratch:
    """Room for one widened frame of each shape, and which group's it is at the moment."""

    def __init__(self) -> None:
        self._frames: dict[tuple[int, int], torch.Tensor] = {}
        self._holders: dict[tuple[int, int], Any] = {}

    def take(self, group: Group, shape: tuple[int, int], like: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The frame of this shape, and whether it already holds `group`."""
        if shape not in self._frames:
            self._frames[shape] = torch.zeros(shape, dtype=like.dtype, device=like.device)
        held = self._holders.get(shape) is group
        self._holders[shape] = group
        return self._frames[shape], held

    def forget(self) -> None:
        """The adapters changed: no frame holds what it should."""
        self._holders.clear()


class Group:
    """The layers of one input. See the module's text for the frame.

    Attributes:
        sums: where the gradients of `parameters` are added as soon as they are there; None leaves that to autograd, which holds all of a
            micro-batch's until its end.
    """

    def __init__(self, members: Sequence[Member], dtype: torch.dtype, storage: Storage, scratch: Scratch) -> None:
        self.members = list(members)
        self.storage = storage
        self.scratch = scratch
        self.sums: list[torch.Tensor] | None = None
        self.sizes = [member.base.out_features for member in members]
        self.inputs, self.outputs = members[0].base.in_features, sum(self.sizes)
        ranks = [0 if member.a is None else member.a.shape[0] for member in members]
        self.offsets = [sum(ranks[:index]) for index in range(len(ranks))]
        self.room = -(-sum(ranks) // _ALIGN) * _ALIGN
        self.bias = self._join_bias(dtype)
        device = members[0].base.weight.device
        self.down = torch.zeros(self.room, self.inputs, dtype=dtype, device=device)  # every A, one below the other
        self.up = torch.zeros(self.outputs, self.room, dtype=dtype, device=device)  # every scaled B, on the diagonal
        if storage == "exact":
            self._build_frame(dtype, device)
        elif storage == "fp8":
            self._build_rows8(dtype)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every adapted layer, in the order in which `backward` gives their gradients."""
        return [parameter for member in self.members if member.a is not None for parameter in (member.a, member.b)]

    def _join_bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        if all(member.base.bias is None for member in self.members):
            return None
        return torch.cat([torch.zeros(size, dtype=dtype, device=member.base.weight.device) if member.base.bias is None
                          else member.base.bias.detach().to(dtype) for member, size in zip(self.members, self.sizes, strict=True)])

    def _build_frame(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the weights into the frame; the model's own layers become views of it, so they are in memory once."""
        frame = torch.zeros(self.outputs + self.room, self.inputs + self.room, dtype=dtype, device=device)
        first = 0
        for index, member in enumerate(self.members):
            rows = slice(first, first + self.sizes[index])
            widen_into(member.base, frame[rows, : self.inputs])
            self.members[index] = Member(_as_view(member, frame[rows, : self.inputs]), member.a, member.b, member.scale, member.owner)
            first = rows.stop
        self.frame = frame
        self.down, self.up = frame[self.outputs:, : self.inputs], frame[: self.outputs, self.inputs:]

    def _build_rows8(self, dtype: torch.dtype) -> None:
        """Round the weights to FP8 in both layouts: scales belong to the outputs on the way there, to the inputs on the way back."""
        weight = torch.cat([widened(member.base, dtype) for member in self.members])
        self.weight8 = quantize_rows(weight)
        self.weight8_back = quantize_rows(weight.T.contiguous())

    def adapter_places(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        """For each of `parameters`: where its values belong in the frame, the parameter, and what it is multiplied by there."""
        first = 0
        for member, size, offset in zip(self.members, self.sizes, self.offsets, strict=True):
            if member.a is not None and member.b is not None:
                columns = slice(offset, offset + member.a.shape[0])
                yield self.down[columns], member.a, 1.0
                yield self.up[first: first + size, columns], member.b, member.scale
            first += size

    def _framed(self) -> torch.Tensor:
        if self.storage == "exact":
            return self.frame
        frame, is_held = self.scratch.take(self, (self.outputs + self.room, self.inputs + self.room), self.down)
        if not is_held:
            first = 0
            for member, size in zip(self.members, self.sizes, strict=True):
                widen_into(member.base, frame[first: first + size, : self.inputs])
                first += size
            frame[self.outputs:, : self.inputs] = self.down
            frame[: self.outputs, self.inputs:] = self.up
        return frame

    def forward(self, x: torch.Tensor, rows8: Rows8 | None = None) -> torch.Tensor:
        """Outputs (T, out) of all layers side by side.

        Args:
            x: the inputs in a buffer (T, in) with `room`; A x is written there.
            rows8: the inputs in FP8, for FP8 weights; made here when missing.
        """
        if self.storage == "fp8":
            inputs = x[:, : self.inputs]
            y = product_8(rows8 or quantize_rows(inputs), self.weight8, self.bias, x.dtype)
            if self.room:
                torch.mm(inputs, self.down.T, out=x[:, self.inputs:])
                y.addmm_(x[:, self.inputs:], self.up.T)
            return y
        frame = self._framed()
        if self.room:
            torch.mm(x[:, : self.inputs], frame[self.outputs:, : self.inputs].T, out=x[:, self.inputs:])
        weight = frame[: self.outputs].T
        return torch.mm(x, weight) if self.bias is None else torch.addmm(self.bias, x, weight)

    def room_for_grad(self, grad: torch.Tensor) -> torch.Tensor:
        """The outputs' gradient in the buffer that `backward` wants: with room, which FP8 needs not."""
        if self.storage == "fp8":
            return grad.contiguous()
        buffer = with_room(grad, self.outputs, self.room)
        buffer[:, : self.outputs] = grad
        return buffer

    @property
    def grad_room(self) -> int:
        """Spare columns of that buffer."""
        return 0 if self.storage == "fp8" else self.room

    def backward(self, dy: torch.Tensor, x: torch.Tensor, rows8: Rows8 | None = None, wants_input: bool = True
                 ) -> tuple[torch.Tensor | None, Sequence[torch.Tensor | None]]:
        """Gradients of the input (T, in), and of `parameters` in float32, where they are not in `sums`.

        Args:
            dy: gradient of the outputs, in a buffer with `grad_room`.
            x: the buffer that `forward` was given, A x in it.
            rows8: `dy` in FP8, for FP8 weights; made here when missing.
        """
        grads, low = dy[:, : self.outputs], None
        if self.room:
            low = dy[:, self.outputs:] if self.grad_room else with_room(dy, 0, self.room)
            torch.mm(grads, self.up, out=low)
        dx = self._input_grad(dy, low, rows8) if wants_input else None
        return dx, [] if low is None else self._handed_over(self._adapter_grads(grads, low, x))

    def _handed_over(self, grads: list[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        """What autograd shall have of the gradients."""
        if self.sums is None:
            return grads
        torch._foreach_add_(self.sums, grads)
        return [None] * len(grads)

    def _input_grad(self, dy: torch.Tensor, low: torch.Tensor | None, rows8: Rows8 | None) -> torch.Tensor:
        if self.storage == "fp8":
            dx = product_8(rows8 or quantize_rows(dy), self.weight8_back, None, dy.dtype)
            return dx if low is None else dx.addmm_(low, self.down)
        return torch.mm(dy, self._framed()[:, : self.inputs])

    def _adapter_grads(self, grads: torch.Tensor, low: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        down = product_exact(low.T, x[:, : self.inputs])
        found, first = [], 0
        for member, size, offset in zip(self.members, self.sizes, self.offsets, strict=True):
            if member.a is not None:
                columns = slice(offset, offset + member.a.shape[0])
                up = product_exact(grads[:, first: first + size].T, x[:, self.inputs:][:, columns])
                found += [down[columns], up.mul_(member.scale)]
            first += size
        return found


def widened(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """A layer's weight (out, in) as numbers: a 4-bit one has the values that QLoRA multiplies with."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.detach().to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, state).to(dtype)


def widen_into(base: nn.Module, out: torch.Tensor) -> None:
    """Write a layer's weight into `out`, in one pass where a kernel can."""
    state = getattr(base.weight, "quant_state", None)
    if runs_kernels(out) and state is not None and state.nested and state.quant_type == "nf4":
        widen_nf4(base.weight.data, state, out)
    else:
        out.copy_(widened(base, out.dtype))


def _as_view(member: Member, weight: torch.Tensor) -> nn.Module:
    """The layer with `weight` in place of its own; a 4-bit one becomes an ordinary linear layer of the same values."""
    base = member.base
    if getattr(base.weight, "quant_state", None) is None:
        base.weight = nn.Parameter(weight, requires_grad=False)
        return base
    plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = base.bias
    if member.owner is not None:
        member.owner.base_layer = plain
    return plain
