"""One update: the loss and its gradients over the recipe's effective batch, whatever the micro-batch.

The loss is the mean negative log likelihood over all trained tokens of the update (not a mean of micro-batch means), so splitting the
batch differently, or sharing it among processes, does not change the mathematics. Only positions that are trained go through the
output head: on a small model with a large vocabulary the head is a third of the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from core.data.encode import Encoded
from core.models.products import product
from core.train.packed import rows_between

# So many positions go through the head at a time: their logits, in float32, are the largest tensor of a training otherwise.
_POSITIONS_AT_A_TIME = 2048
_SAMPLE_TOKENS = 16
# fused: from the head's weights, gradients included, for trained positions only. layer: the head as a layer, where its weights come and
# go. model: whatever the model does to its head's output, at every position.
Head = Literal["fused", "layer", "model"]


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors.

    Attributes:
        ids: (R, T) padded, or (1, T) with the rows laid end to end.
        mask: (R, T), 1 where there is a token; None when packed.
        positions: (1, T), the place of each token in its row; None when padded.
        bounds: where each row begins, and the total; None when padded.
        places: (N,) which of the R x T positions predict a trained token.
        targets: (N,) those tokens.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    bounds: tuple[int, ...] | None
    places: torch.Tensor
    targets: torch.Tensor

    def rows_apart(self) -> AbstractContextManager[None]:
        """To be held open on the way there and back."""
        return nullcontext() if self.bounds is None else rows_between(self.bounds, self.ids.device)


def collate(rows: Sequence[Encoded], pad_id: int, device: str, is_packed: bool = False) -> Batch:
    """Right-pad rows to a batch, or lay them end to end."""
    lengths = [len(row.ids) for row in rows]
    ids = np.concatenate([np.asarray(row.ids, np.int64) for row in rows])
    trained = np.concatenate([np.asarray(row.trained, np.bool_) for row in rows])
    in_row = np.concatenate([np.arange(length) for length in lengths])
    if is_packed:
        bounds, where = (0, *accumulate(lengths)), np.arange(len(ids))
        mask, positions = None, in_row[None]
    else:
        longest = max(lengths)
        bounds, where = None, np.repeat(np.arange(len(rows)) * longest, lengths) + in_row
        padded, mask = np.full((len(rows), longest), pad_id), np.zeros((len(rows), longest), np.int64)
        padded.flat[where], mask.flat[where] = ids, 1
        positions = None
    chosen = np.nonzero(trained & (in_row > 0))[0]  # the first token of a row has nothing before it
    arrays = (ids[None] if is_packed else padded, mask, positions, where[chosen] - 1, ids[chosen])
    parts = [None if part is None else torch.from_numpy(part) for part in arrays]
    moved = [None if part is None else part.to(device, non_blocking=True) for part in parts]
    return Batch(moved[0], moved[1], moved[2], bounds, moved[3], moved[4])


def trained_targets(row: Encoded) -> int:
    """Tokens of a row that are predicted and counted: the first token of a sequence has nothing before it."""
    return sum(row.trained[1:])


def summed_loss(model: PreTrainedModel, batch: Batch, head: Head = "fused") -> torch.Tensor:
    """Sum of -log p over the trained tokens of a micro-batch, in float32.

    Args:
        model: a causal language model, adapters already injected.
        batch: from `collate`.
        head: how logits are made; see `Head`.
    """
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if head == "model":
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[batch.places]
        return functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
    hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[batch.places]
    layer = model.get_output_embeddings()
    if head == "layer":
        return functional.cross_entropy(layer(hidden).float(), batch.targets, reduction="sum")
    return HeadLoss.apply(hidden, layer.weight, layer.bias, batch.targets)


class HeadLoss(torch.autograd.Function):
    """Sum of the cross-entropies of head(hidden), a few thousand positions at a time.

    The gradients are taken on the way there, while the logits are at hand: with p = softmax(logits) and y the one-hot target, they are
    (p - y) W for the hidden states and (p - y)^T hidden for the weights. So no logits are kept, and none is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
        """Hidden (N, H), weight (V, H), bias (V,) or None, targets (N,)."""
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        kept = hidden.to(weight.dtype)
        for first in range(0, len(kept), _POSITIONS_AT_A_TIME):
            part, here = kept[first:first + _POSITIONS_AT_A_TIME], targets[first:first + _POSITIONS_AT_A_TIME]
            logits = product(part, weight, bias).float()
            norms = logits.logsumexp(-1, keepdim=True)
            total += (norms.squeeze(-1) - logits.gather(-1, here[:, None]).squeeze(-1)).sum()
            if not any(ctx.needs_input_grad):
                continue
            error = logits.sub_(norms).exp_()
            error[torch.arange(len(here), device=here.device), here] -= 1
            rounded = error.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[first:first + len(here)] = product(rounded, weight.t())
            if grad_weight is not None:
                grad_weight += product(rounded.t(), part.t()).float()
            if grad_bias is not None:
                grad_bias += error.sum(0)
        ctx.save_for_backward(*(part for part in (grad_hidden, grad_weight, grad_bias) if part is not None))
        ctx.is_there = [part is not None for part in (grad_hidden, grad_weight, grad_bias)]
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [(next(saved) * grad).to(dtype) if there else None for there, dtype in zip(ctx.is_there, ctx.dtypes, strict=True)]
        return (*grads, None)


@torch.no_grad()
def has_plain_head(model: PreTrainedModel, ids: Sequence[int]) -> bool:
    """Whether the logits are what the output head makes of the last hidden state: some models scale or bound them afterwards."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or not head.weight.is_floating_point():
        return False
    sample = torch.tensor([list(ids[:_SAMPLE_TOKENS])], device=head.weight.device)
    whole = model(input_ids=sample, use_cache=False).logits.float()
    ours = head(model.get_decoder()(input_ids=sample, use_cache=False).last_hidden_state).float()
    return bool((whole - ours).norm() <= 1e-2 * whole.norm())


class SummedLoss(torch.nn.Module):
    """The model with its loss as one module: what a distributed engine wraps."""

    def __init__(self, model: torch.nn.Module, head: Head = "fused", autocast: torch.dtype | None = None) -> None:
        """Take a model, or a PEFT model, and train it through its summed loss.

        Args:
            model: what is trained.
            head: how logits are made.
            autocast: the type to compute in while the weights keep theirs, as in full training with float32 weights.
        """
        super().__init__()
        self.model, self.head, self.autocast = model, head, autocast

    def forward(self, batch: Batch) -> torch.Tensor:
        with self._in_short_numbers(batch.ids.device.type):
            return summed_loss(language_model(self.model), batch, self.head)

    def _in_short_numbers(self, device_type: str) -> AbstractContextManager[None]:
        """Each weight is used once on its way, so keeping its short copy would cost memory and save nothing."""
        return torch.autocast(device_type, self.autocast, cache_enabled=False) if self.autocast else nullcontext()


def language_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper; the adapter's layers stay in place."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def learning_rate_at(update: int, updates: int, warmup: int, peak: float, shape: str) -> float:
    """Learning rate of update 1..updates: linear warm-up, then constant, linear or cosine down to 0 after the last update."""
    if update <= warmup:
        return peak * update / (warmup + 1)
    if shape == "constant":
        return peak
    left = (updates - update + 1) / (updates - warmup)
    return peak * left if shape == "linear" else peak * 0.5 * (1 - math.cos(math.pi * left))
