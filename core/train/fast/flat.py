"""Rows of tokens laid behind one another, as the fast path reads them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional

from core.train.fast.attention import Documents
from core.train.update import Batch

# Sizes are rounded up to these, so that rows of any lengths lead to few different shapes.
_TOKENS, _ROWS, _SHORTEST = 512, 8, 256


@dataclass(frozen=True)
class FlatRows:
    """Rows behind one another.

    Attributes:
        ids, places_in_row: (T,) token ids and how far each is from its row's beginning.
        documents: where the rows begin.
        predictors, targets: (n,) the places whose next token is trained, and that token; a target below 0 counts nothing.
    """

    ids: torch.Tensor
    places_in_row: torch.Tensor
    documents: Documents
    predictors: torch.Tensor
    targets: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.ids, self.places_in_row, self.documents.starts, self.predictors, self.targets

    @property
    def shape(self) -> tuple[int | bool, ...]:
        """What two of these must have in common for the same recorded kernels to serve both."""
        return *(len(part) for part in self.tensors), self.documents.longest, self.documents.are_equal


def flat_rows(batch: Batch, few_shapes: bool = False) -> FlatRows:
    """A packed micro-batch as flat rows.

    Args:
        batch: from `collate`, packed.
        few_shapes: round the sizes up with a row of padding that nothing sees and nothing learns from.
    """
    if batch.bounds is None or batch.positions is None:
        raise ValueError("only packed rows lie flat")
    ids, places, bounds = batch.ids[0], batch.positions[0], list(batch.bounds)
    predictors, targets = batch.places, batch.targets
    if few_shapes and (padding := -len(ids) % _TOKENS):
        ids = functional.pad(ids, (0, padding))
        places = torch.cat([places, torch.arange(padding, device=places.device)])
        bounds.append(len(ids))
    lengths = [end - start for start, end in pairwise(bounds)]
    longest, are_equal = max(lengths), len(set(lengths)) == 1
    if few_shapes:
        room = -len(targets) % (len(ids) // 8)
        predictors, targets = functional.pad(predictors, (0, room)), functional.pad(targets, (0, room), value=-1)
        if not are_equal:
            bounds += [len(ids)] * (-len(lengths) % _ROWS)  # rows of no length
            longest = max(_SHORTEST, 1 << (longest - 1).bit_length())
    starts = torch.tensor(bounds, dtype=torch.int32).to(ids.device)
    return FlatRows(ids, places, Documents(starts, longest, are_equal), predictors, targets)
