"""One update: the loss and its gradients over the recipe's effective batch, whatever the micro-batch.

The loss is the mean negative log likelihood over all trained tokens of the update (not a mean of micro-batch means), so splitting the
batch differently does not change the mathematics. Only positions that are trained go through the output head: on a small model with a
large vocabulary the head is a third of the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from transformers import PreTrainedModel

from core.data.encode import Encoded

# A micro-batch holds at most this many tokens, padding included, unless the recipe fixes its rows.
_TOKENS_PER_MICRO_BATCH = 8192


def split_rows(rows: Sequence[Encoded], micro_batch: int | None) -> list[list[Encoded]]:
    """Cut the rows of an update into micro-batches of similar length, so that little is padded."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    parts: list[list[Encoded]] = [[]]
    for row in ordered:
        rows_if_added = len(parts[-1]) + 1
        is_full = rows_if_added > micro_batch if micro_batch else rows_if_added * len(row.ids) > _TOKENS_PER_MICRO_BATCH
        if parts[-1] and is_full:
            parts.append([])
        parts[-1].append(row)
    return parts


def collate(rows: Sequence[Encoded], pad_id: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-pad rows to a batch.

    Returns:
        ids (R, T), attention mask (R, T), labels (R, T) with -100 where nothing is trained.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for index, row in enumerate(rows):
        length = len(row.ids)
        tokens = torch.tensor(row.ids)
        ids[index, :length] = tokens
        mask[index, :length] = 1
        labels[index, :length] = torch.where(torch.tensor(row.trained), tokens, -100)
    return ids.to(device), mask.to(device), labels.to(device)


def trained_targets(row: Encoded) -> int:
    """Tokens of a row that are predicted and counted: the first token of a sequence has nothing before it."""
    return sum(row.trained[1:])


def summed_loss(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of -log p over the trained tokens of a micro-batch, in float32.

    Args:
        model: a causal language model, adapters already injected.
        ids, mask, labels: each (R, T), from `collate`.
    """
    hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    is_trained = targets != -100
    logits = model.get_output_embeddings()(hidden[:, :-1][is_trained])
    return functional.cross_entropy(logits.float(), targets[is_trained], reduction="sum")


def backward_update(model: PreTrainedModel, rows: Sequence[Encoded], micro_batch: int | None, pad_id: int, device: str) -> float:
    """Add the gradients of one update's mean loss; returns that loss in nats per token."""
    targets = sum(trained_targets(row) for row in rows)
    total = 0.0
    for part in split_rows(rows, micro_batch):
        loss = summed_loss(model, *collate(part, pad_id, device)) / targets
        loss.backward()
        total += float(loss.detach())
    return total


def learning_rate_at(update: int, updates: int, warmup: int, peak: float, shape: str) -> float:
    """Learning rate of update 1..updates: linear warm-up, then constant, linear or cosine down to 0 after the last update."""
    if update <= warmup:
        return peak * update / (warmup + 1)
    if shape == "constant":
        return peak
    left = (updates - update + 1) / (updates - warmup)
    return peak * left if shape == "linear" else peak * 0.5 * (1 - math.cos(math.pi * left))
