"""The loss from the last hidden states, without the logits of more than a slice of the tokens in memory at a time.

Only places whose next token is trained go through the final norm and the output head. The head is frozen, so the gradient of a slice's
hidden states is computed right after its logits, which are then overwritten by the next slice's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from core.train.fast.layer import Norm
from core.train.fast.ops import add_rmsnorm, cross_entropy_, rmsnorm_backward


class HeadLoss(Function):
    """(h, delta) -> sum of -log p over the chosen tokens, float32."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, delta: torch.Tensor, norm: Norm, head: torch.Tensor, places: torch.Tensor,
                targets: torch.Tensor, slice_bytes: int) -> torch.Tensor:
        """Compute the loss and, at once, its gradient.

        Args:
            h, delta: residual stream and the last layer's output, (T, H).
            norm: the final norm.
            head: output head (V, H).
            places, targets: (n,) which tokens' successors are trained, and those successors; a target below 0 counts nothing.
            slice_bytes: most memory for the logits of a slice.
        """
        total, x, rstd, _ = add_rmsnorm(h[places], delta[places], norm.weight, norm.eps, 0, False)
        rows = max(1, slice_bytes // (head.shape[0] * head.element_size()))
        loss = torch.zeros((), dtype=torch.float32, device=h.device)
        dx = torch.empty_like(x)
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            logits = torch.mm(x[part], head.T)
            loss += cross_entropy_(logits, targets[part]).sum()
            torch.mm(logits, head, out=dx[part])
        # What counts nothing goes to a row of its own, so that it overwrites no other gradient of its place.
        ctx.save_for_backward(rmsnorm_backward(dx, total, norm.weight, rstd, torch.zeros_like(dx)),
                              torch.where(targets >= 0, places, h.shape[0]))
        ctx.tokens = h.shape[0]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        chosen, places = ctx.saved_tensors
        dh = chosen.new_zeros(ctx.tokens + 1, chosen.shape[1])
        dh[places] = (chosen * grad).to(chosen.dtype)
        dh = dh[: ctx.tokens]
        return dh, dh, None, None, None, None, None
