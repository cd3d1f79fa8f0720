"""Rows laid end to end in one sequence, none of which sees another: no padding, and the same loss as for each row alone.

Positions begin anew with each row, and attention is computed row by row. That is registered with transformers as an attention
implementation of its own, so that it works for every model whose attention can be exchanged; `rows_stay_apart` tells for which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rows_apart"
_SAMPLE_TOKENS = 24
# Rounding of half-precision numbers moves the last layer's output by a hundredth; another row that is seen, by a tenth and more.
_TOLERANCE = {torch.float32: 1e-3}
_HALF_TOLERANCE = 0.05

# Where each row begins, and the total; set while a packed micro-batch is on its way, back included (checkpointing computes anew there).
_bounds: tuple[int, ...] | None = None
_starts: torch.Tensor | None = None


@contextmanager
def rows_between(bounds: tuple[int, ...], device: torch.device | str) -> Iterator[None]:
    """While this lasts, attention sees rows that begin at `bounds` (the last entry is the total of tokens)."""
    global _bounds, _starts
    _bounds = bounds
    _starts = torch.tensor(bounds, dtype=torch.int32).to(device)
    try:
        yield
    finally:
        _bounds, _starts = None, None


def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
           attention_mask: torch.Tensor | None, **options: Any) -> tuple[torch.Tensor, None]:
    """Attention of each row to itself; without rows, transformers' own.

    Args:
        query: (1, heads, T, D); key and value may have fewer heads.

    Returns:
        (1, T, heads, D), and no weights.
    """
    if _bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    window = options.get("sliding_window")
    longest = max(end - start for start, end in pairwise(_bounds))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not (window and longest > window):
        return _attend_in_one_kernel(query, key, value, longest, options.get("scaling")), None
    parts = [sdpa_attention_forward(module, query[:, :, start:end], key[:, :, start:end], value[:, :, start:end],
                                    _window_mask(end - start, window, query.device), **options)[0]
             for start, end in pairwise(_bounds)]
    return torch.cat(parts, dim=1), None


def _attend_in_one_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, longest: int,
                          scaling: float | None) -> torch.Tensor:
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    out = torch.ops.aten._flash_attention_forward(q, k, v, _starts, _starts, longest, longest, 0.0, True, False, scale=scaling)[0]
    return out.unsqueeze(0)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """None where causality is all; else which keys each query may see, for models that look back only so far."""
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    return sdpa_mask(*args, **options) if _bounds is None else None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)


def lay_end_to_end(lengths: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """Where each row begins, with the total; and the position of every token in its row."""
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return tuple(bounds), [place for length in lengths for place in range(length)]


def let_rows_stay_apart(model: PreTrainedModel, ids: Sequence[int], compute: torch.dtype = torch.float32) -> bool:
    """Prepare a model for packed rows; False, and the model as it was, where it would let them see each other.

    Models with memory from token to token (state spaces) do, and those whose attention cannot be exchanged; so what counts is tried:
    the same tokens once alone and once behind others.

    Args:
        ids: some token ids of a real row.
        compute: the number format that the model computes in; that of its weights may be another.
    """
    before = model.config._attn_implementation
    if before != "sdpa":
        return False
    try:
        model.set_attn_implementation(NAME)
        if rows_stay_apart(model, ids, compute):
            return True
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        print(f"packing is left out: {error}", flush=True)
    model.set_attn_implementation(before)
    return False


@torch.no_grad()
def rows_stay_apart(model: PreTrainedModel, ids: Sequence[int], compute: torch.dtype = torch.float32) -> bool:
    """Whether the last layer says the same of a row alone and of the same row behind another one, up to the rounding of `compute`."""
    sample = list(ids[:_SAMPLE_TOKENS])
    decoder, device = model.get_decoder(), next(model.parameters()).device
    alone = decoder(input_ids=torch.tensor([sample], device=device), use_cache=False).last_hidden_state[0].float()
    bounds, positions = lay_end_to_end([len(sample), len(sample)])
    with rows_between(bounds, device):
        both = decoder(input_ids=torch.tensor([sample[::-1] + sample], device=device), use_cache=False,
                       position_ids=torch.tensor([positions], device=device)).last_hidden_state[0].float()
    behind = both[len(sample):]
    tolerance = _TOLERANCE.get(compute, _HALF_TOLERANCE)
    return bool((behind - alone).norm() <= tolerance * alone.norm())
