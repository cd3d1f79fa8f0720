"""Rows of tokens laid behind one another, without padding between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.data.encode import Encoded
from core.train.fast.attention import Documents

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
        """What two of these must have in common for the same kernels to serve both."""
        return *(len(part) for part in self.tensors), self.documents.longest, self.documents.are_equal


def flatten_rows(rows: Sequence[Encoded], device: str, few_shapes: bool = False) -> FlatRows:
    """Lay rows behind one another; no token of theirs is added or dropped.

    Args:
        few_shapes: round the sizes up with a row of padding that nothing sees and nothing learns from.
    """
    ids = [np.asarray(row.ids, np.int64) for row in rows]
    trained = [np.asarray(row.trained, np.bool_) for row in rows]
    lengths = [len(part) for part in ids]
    total = sum(lengths)
    padding = -total % _TOKENS if few_shapes else 0
    if padding:
        ids.append(np.zeros(padding, np.int64))
        trained.append(np.zeros(padding, np.bool_))
        lengths.append(padding)
    longest, are_equal = max(lengths), len(set(lengths)) == 1
    starts = np.concatenate([[0], np.cumsum(lengths)])
    places = np.concatenate([np.arange(length) for length in lengths])
    every_id = np.concatenate(ids)
    successors = np.nonzero(np.concatenate(trained) & (places > 0))[0]  # the first token of a row has nothing before it
    predictors, targets = successors - 1, every_id[successors]
    if few_shapes:
        room = -len(targets) % (len(every_id) // 8)
        predictors, targets = np.pad(predictors, (0, room)), np.pad(targets, (0, room), constant_values=-1)
        if not are_equal:
            starts = np.pad(starts, (0, -len(lengths) % _ROWS), mode="edge")  # rows of no length
            longest = max(_SHORTEST, 1 << (longest - 1).bit_length())
    arrays = (every_id, places, starts.astype(np.int32), predictors, targets)
    ids_, places_, starts_, predictors_, targets_ = (torch.from_numpy(array).to(device) for array in arrays)
    return FlatRows(ids_, places_, Documents(starts_, longest, are_equal), predictors_, targets_)
