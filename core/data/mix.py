"""Mixing datasets: what share of the tokens each source gets, and a mixed dataset that remembers where it came from.

Weights are shares of rows, as in a recipe's `data.sources`, or of trained tokens. A source of long answers takes a far larger share of
the trained tokens than of the rows, and the tokens are what the loss is made of.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.encode import Encoder
from core.data.library import Dataset, load_dataset, save_dataset
from core.data.measure import measure_dataset
from core.errors import StudioError
from core.workspace import Workspace

_LARGEST_ROWS = 1_000_000


@dataclass(frozen=True)
class Part:
    """One source of a mixture; `groups` None means all its rows."""

    dataset: str
    weight: float
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Share:
    """What a source gives to a mixture. Shares are 0 to 1; means are tokens per row."""

    dataset: str
    rows: int
    row_share: float
    mean_tokens: float
    mean_trained: float
    token_share: float
    trained_share: float


def token_shares(workspace: Workspace, parts: Sequence[Part], encoder: Encoder) -> list[Share]:
    """The share of rows, tokens and trained tokens of each part.

    Raises:
        StudioError: no part, a weight that is no share, a dataset that is missing or has no such rows.
    """
    weights = _checked(parts)
    measures = [measure_dataset(load_dataset(workspace, part.dataset), encoder, list(part.groups) if part.groups else None)
                for part in parts]
    row_shares = [weight / sum(weights) for weight in weights]
    tokens = [share * measure.mean_tokens for share, measure in zip(row_shares, measures, strict=True)]
    trained = [share * measure.mean_trained for share, measure in zip(row_shares, measures, strict=True)]
    return [Share(part.dataset, measures[index].rows, row_shares[index], measures[index].mean_tokens, measures[index].mean_trained,
                  tokens[index] / max(sum(tokens), 1e-9), trained[index] / max(sum(trained), 1e-9)) for index, part in enumerate(parts)]


def weighed_by_tokens(workspace: Workspace, parts: Sequence[Part], encoder: Encoder) -> list[Part]:
    """The same parts with weights that are shares of rows, where the given ones are shares of trained tokens.

    A source whose rows have twice the trained tokens needs half the rows for the same share.

    Raises:
        StudioError: see `token_shares`; or a source has nothing that is trained.
    """
    weights = [weight / sum(_checked(parts)) for weight in _checked(parts)]
    found = []
    for part, weight in zip(parts, weights, strict=True):
        measure = measure_dataset(load_dataset(workspace, part.dataset), encoder, list(part.groups) if part.groups else None)
        if not measure.mean_trained:
            raise StudioError("No token of {name} is trained, so it cannot be mixed by tokens.", "Mix by rows, or leave it out.",
                              name=part.dataset)
        found.append(Part(part.dataset, weight / measure.mean_trained, part.groups))
    total = sum(part.weight for part in found)
    return [Part(part.dataset, part.weight / total, part.groups) for part in found]


def most_rows(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Rows of the largest mixture in which no row occurs twice."""
    total = sum(weights)
    return max(1, math.floor(min(size * total / weight for size, weight in zip(sizes, weights, strict=True)) + 1e-9))


def split_rows(total: int, weights: Sequence[float]) -> list[int]:
    """`total` shared out by weight in whole rows; what is left over goes to the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[:total - sum(counts)]:
        counts[index] += 1
    return counts


def mix_datasets(workspace: Workspace, name: str, parts: Sequence[Part], rows: int | None = None, seed: int = 0,
                 encoder: Encoder | None = None) -> Dataset:
    """Make a dataset out of several; the same arguments and datasets give the same rows.

    Args:
        workspace: where they lie.
        name: of the new dataset.
        parts: the sources; weights are shares of its rows.
        rows: how many it shall have; None takes as many as it can without using a row twice. More repeats the smaller sources.
        seed: of the choice and the order.
        encoder: with it the weights are shares of the trained tokens that it counts, else of the rows.

    Raises:
        StudioError: see `token_shares`; or the name is taken, or the number of rows is out of bounds.
    """
    weights = _checked(parts if encoder is None else weighed_by_tokens(workspace, parts, encoder))
    datasets = [load_dataset(workspace, part.dataset) for part in parts]
    pools = [dataset.rows(list(part.groups) if part.groups else None) for dataset, part in zip(datasets, parts, strict=True)]
    total = most_rows([len(pool) for pool in pools], weights) if rows is None else rows
    if not len(parts) <= total <= _LARGEST_ROWS:
        raise StudioError("A mixture of {total} rows cannot be made.", "Ask for {least} to {most} rows.",
                          total=total, least=len(parts), most=_LARGEST_ROWS)
    counts = split_rows(total, weights)
    mixed = [row for index, (pool, count) in enumerate(zip(pools, counts, strict=True)) for row in _drawn(pool, count, f"{seed}/{index}")]
    random.Random(seed).shuffle(mixed)
    sources = [{"dataset": part.dataset, "groups": list(part.groups) if part.groups else None, "weight": part.weight, "rows": count,
                "sha256": dataset.card.sha256} for part, dataset, count in zip(parts, datasets, counts, strict=True)]
    phrases: dict[str, str] = {}
    for dataset in reversed(datasets):
        phrases |= dataset.card.key_phrases
    return save_dataset(workspace, name, mixed, "mix", probes=_all_probes(datasets), key_phrases=phrases,
                        made_with={"sources": sources, "seed": seed, "by": "rows" if encoder is None else "tokens"})


def _checked(parts: Sequence[Part]) -> list[float]:
    if not parts:
        raise StudioError("A mixture needs at least one dataset.", "Choose two, and how much of each.")
    for part in parts:
        if not 0 < part.weight < 1e6:
            raise StudioError("The weight of {name} is {weight}.", "Use a number above 0; 1 and 1 is half and half.",
                              name=part.dataset, weight=part.weight)
    return [part.weight for part in parts]


def _drawn(pool: list[dict[str, Any]], count: int, seed: str) -> list[dict[str, Any]]:
    """`count` rows in a random order; each is used once before any is used again."""
    drawn: list[dict[str, Any]] = []
    for turn in range(-(-count // len(pool))):
        order = list(pool)
        random.Random(f"{seed}/{turn}").shuffle(order)
        drawn += order[:count - len(drawn)]
    return drawn


def _all_probes(datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """The probes of all sources; of those with the same id the first dataset's."""
    probes: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        for probe in dataset.all_probes():
            probes.setdefault(probe["id"], probe)
    return list(probes.values())
