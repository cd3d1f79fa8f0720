"""How many tokens rows have, and how many of them are trained, counted by the encoder that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.data.encode import Encoder, TrainOn
from core.data.library import Dataset
from core.errors import StudioError
from core.words import Text

# A mean over this many rows, evenly spaced, is within a few percent; counting a large dataset in full takes minutes.
SAMPLE_ROWS = 500


@dataclass
class Measure:
    """Token counts of some rows of a dataset.

    Attributes:
        rows: how many rows there are in all.
        places: which rows were counted (from 0), ascending.
        tokens: tokens of each counted row, special tokens included; 0 for a refused one.
        trained: how many of them are trained.
        first_trained: tokens before the first trained one.
        refused: place -> why the chat template refuses the row.
        documents: how many of the counted rows are plain documents, which are not cut but taken in pieces.
    """

    rows: int
    places: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    first_trained: list[int] = field(default_factory=list)
    refused: dict[int, Text] = field(default_factory=dict)
    documents: int = 0

    @property
    def is_sample(self) -> bool:
        return len(self.places) < self.rows

    @property
    def mean_tokens(self) -> float:
        return sum(self.tokens) / max(1, len(self.tokens))

    @property
    def mean_trained(self) -> float:
        return sum(self.trained) / max(1, len(self.trained))

    def mean_below(self, limit: int) -> float:
        """Mean tokens per row when each is cut at `limit`."""
        return sum(min(tokens, limit) for tokens in self.tokens) / max(1, len(self.tokens))

    def mean_pieces(self, limit: int) -> float:
        """Rows that a training makes of one: a document longer than `limit` becomes several, each beginning with the last token before."""
        if not self.documents:
            return 1.0
        return sum(max(1, -(-(tokens - 1) // max(1, limit - 1))) for tokens in self.tokens) / max(1, len(self.tokens))

    def cut_at(self, limit: int) -> list[int]:
        """Places of the rows that are longer than `limit` tokens."""
        return [place for place, tokens in zip(self.places, self.tokens, strict=True) if tokens > limit]

    def lost_at(self, limit: int) -> list[int]:
        """Places of the rows that have no trained token left when cut at `limit`."""
        return [place for place, first in zip(self.places, self.first_trained, strict=True) if first >= limit]


def measure_rows(rows: Sequence[dict[str, Any]], encoder: Encoder, train_on: TrainOn = "all", most: int = SAMPLE_ROWS) -> Measure:
    """Count the tokens of at most `most` rows, evenly spaced."""
    step = max(1, -(-len(rows) // most))
    measure = Measure(len(rows))
    for place in range(0, len(rows), step):
        measure.places.append(place)
        measure.documents += "text" in rows[place]
        try:
            encoded = encoder.encode_row(rows[place], train_on)
        except StudioError as error:
            measure.refused[place] = error.problem
            measure.tokens.append(0)
            measure.trained.append(0)
            measure.first_trained.append(0)
            continue
        measure.tokens.append(len(encoded.ids))
        measure.trained.append(sum(encoded.trained))
        measure.first_trained.append(encoded.trained.index(True) if any(encoded.trained) else 0)
    return measure


@lru_cache(maxsize=4)
def read_encoder(folder: Path, system: str | None, stamp: int) -> Encoder:
    """The encoder of a model folder, kept while its files stay the same (`stamp`: their times of change in ns)."""
    return Encoder.from_folder(folder, system)


def encoder_of(folder: Path, system: str | None = None) -> Encoder:
    """The encoder of a model folder; reading a tokenizer takes 0.1 to 1 s, so the last few are kept."""
    paths = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")]
    return read_encoder(folder, system, hash(tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)))


@lru_cache(maxsize=32)
def _measure_kept(folder: Path, sha256: str, groups: tuple[str, ...] | None, encoder: Encoder, train_on: TrainOn) -> Measure:
    rows = Dataset.open(folder).rows(list(groups) if groups else None)
    return measure_rows(rows, encoder, train_on)


def measure_dataset(dataset: Dataset, encoder: Encoder, groups: list[str] | None = None, train_on: TrainOn = "all") -> Measure:
    """The measure of a dataset, kept in memory while its rows stay the same.

    Raises:
        StudioError: no row is left in these groups.
    """
    return _measure_kept(dataset.folder, dataset.card.sha256, tuple(groups) if groups else None, encoder, train_on)
