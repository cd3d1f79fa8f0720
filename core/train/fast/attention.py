"""Causal attention over flat rows: documents of any length behind one another, none of which sees another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Documents:
    """Where each row begins in the flat tokens.

    Attributes:
        starts: (rows + 1,) int32, the first place of each row and the total.
        longest: tokens of the longest row.
        are_equal: every row has `longest` tokens, which a faster kernel can use on Hopper.
    """

    starts: torch.Tensor
    longest: int
    are_equal: bool = False

    def as_batch(self, x: torch.Tensor) -> torch.Tensor:
        """(T, heads, D) -> (rows, heads, longest, D), as a view."""
        return x.unflatten(0, (-1, self.longest)).transpose(1, 2)


Saved = tuple[torch.Tensor, ...]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> tuple[torch.Tensor, Saved]:
    """Attention of queries (T, heads, D) to keys and values (T, key heads, D); gives (T, heads, D) and what the way back needs."""
    if not q.is_cuda:
        return _attend_plain(q, k, v, documents, scale), ()
    if _suits_cudnn(q, documents):
        parts = [documents.as_batch(part) for part in (q, k, v)]
        out, log_sum, _, _, _, _, seed, offset, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *parts, None, True, 0.0, True, False, scale=scale)
        return out.transpose(1, 2).flatten(0, 1), (log_sum, seed, offset)
    out, log_sum, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, documents.starts, documents.starts, documents.longest, documents.longest, 0.0, True, False, scale=scale)
    return out, (log_sum, rng_state, unused)


def attend_backward(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, saved: Saved,
                    documents: Documents, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v from that of the output (T, heads, D)."""
    if not q.is_cuda:
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in (q, k, v)]
            return torch.autograd.grad(_attend_plain(*leaves, documents, scale), leaves, grad)
    if _suits_cudnn(q, documents):
        log_sum, seed, offset = saved
        parts = [documents.as_batch(part) for part in (grad, q, k, v, out)]
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *parts, log_sum, seed, offset, None, None, None, documents.longest, documents.longest, 0.0, True, scale=scale)
        dq, dk, dv = (part.transpose(1, 2).flatten(0, 1) for part in grads)
        return dq, dk, dv
    log_sum, rng_state, unused = saved
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, log_sum, documents.starts, documents.starts, documents.longest, documents.longest, 0.0, True, rng_state,
        unused, scale=scale)


def _suits_cudnn(q: torch.Tensor, documents: Documents) -> bool:
    """Whether cuDNN's kernel is the faster one: twice as fast as FlashAttention 2 on Hopper, and for rows of one length only."""
    return documents.are_equal and torch.cuda.get_device_capability(q.device) >= (9, 0)


def _attend_plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, scale: float) -> torch.Tensor:
    starts, parts = documents.starts.tolist(), []
    for first, end in zip(starts, starts[1:], strict=False):
        row = [part[first:end].transpose(0, 1)[None] for part in (q, k, v)]
        parts.append(functional.scaled_dot_product_attention(*row, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(parts)
