"""Which rows each update sees. A pure function of the recipe's seed, so a resumed run sees what the uninterrupted one would have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.data.encode import Encoded, Encoder
from core.data.library import load_dataset
from core.errors import StudioError
from core.recipe.schema import Recipe
from core.workspace import Workspace


@dataclass(frozen=True)
class Source:
    """The encoded rows of one entry of `data.sources`."""

    dataset: str
    weight: float
    rows: list[Encoded]


def read_sources(workspace: Workspace, recipe: Recipe, encoder: Encoder) -> list[Source]:
    """Encode every source of a recipe.

    Raises:
        StudioError: a dataset is missing or empty, or no token of a row is left to train after cutting.
    """
    sources = []
    for entry in recipe.data.sources:
        rows = load_dataset(workspace, entry.dataset).rows(entry.groups)
        encoded = [piece for row in rows for piece in _encode(encoder, row, recipe)]
        usable = [row for row in encoded if any(row.trained[1:])]  # the first token has nothing before it to be predicted from
        if not usable:
            raise StudioError("Nothing in the dataset {name} can be trained: no row has an answer within {limit} tokens.",
                              "Raise data.max_length, or check the rows with `sweetspot data preview {name}`.",
                              name=entry.dataset, limit=recipe.data.max_length)
        sources.append(Source(entry.dataset, entry.weight, usable))
    return sources


def _encode(encoder: Encoder, row: dict[str, Any], recipe: Recipe) -> list[Encoded]:
    """A conversation, cut to the longest length; or a plain document, in as many pieces as it takes, so that none of it is lost."""
    limit = recipe.data.max_length
    whole = encoder.encode_row(row, recipe.data.train_on, None if "text" in row else limit)
    # A piece begins with the last token of the one before: the first token of a sequence is only read, never predicted.
    starts = range(0, max(1, len(whole.ids) - 1), limit - 1) if "text" in row else (0,)
    # Text and offsets are for people to look at; a large dataset would fill the memory with them.
    return [Encoded(whole.ids[start:start + limit], whole.trained[start:start + limit], "", []) for start in starts]


def rows_of_update(sources: Sequence[Source], effective_batch: int, seed: int, update: int) -> list[Encoded]:
    """The rows of update number `update` (from 1).

    Each source gives its share of the batch by weight; what does not divide evenly is carried to the next update. Within a source
    the rows are shuffled anew each time all have been seen.
    """
    before = _taken(sources, effective_batch, update - 1)
    after = _taken(sources, effective_batch, update)
    chosen = []
    for index, source in enumerate(sources):
        for position in range(before[index], after[index]):
            epoch, place = divmod(position, len(source.rows))
            chosen.append(source.rows[_order(f"{seed}/{index}/{epoch}", len(source.rows))[place]])
    return chosen


@lru_cache(maxsize=16)
def _order(seed: str, rows: int) -> list[int]:
    order = list(range(rows))
    random.Random(seed).shuffle(order)
    return order


def _taken(sources: Sequence[Source], effective_batch: int, updates: int) -> list[int]:
    """How many rows each source has given after so many updates; sums to updates x effective_batch."""
    total = updates * effective_batch
    weights = sum(source.weight for source in sources)
    taken, given, share = [], 0, 0.0
    for source in sources:
        share += source.weight
        upto = round(total * share / weights)
        taken.append(upto - given)
        given = upto
    return taken
