"""What a dataset is made of: lengths, turns, languages, the share of tokens of each part, and how its rows pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import quantiles
from typing import Any

from core.data.encode import Encoder, TrainOn
from core.data.findings import percent
from core.data.library import Dataset
from core.data.measure import Measure, measure_dataset
from core.data.pack import Span, filled_share, pack_rows

_PAGE_ROWS = 20_000
_NARROWEST = 32  # tokens; upper edge of the first bar, each next one twice as wide
_PARTS_SHOWN = 12


@dataclass(frozen=True)
class Share:
    """One part of a dataset, such as a group or a language. Shares are percent; tokens are those of the rows counted."""

    name: str
    rows: int
    row_share: float
    tokens: int
    token_share: float
    trained_share: float


@dataclass(frozen=True)
class Bar:
    """Rows of more than `above` and at most `upto` tokens."""

    above: int
    upto: int
    rows: int


@dataclass(frozen=True)
class Packing:
    """How the rows counted fill sequences of `max_length` tokens.

    Attributes:
        max_length: tokens of a sequence.
        packs: which rows share one, by their places in the dataset.
        filled: share of the packs' tokens that rows fill, 0 to 1.
        filled_alone: the same with one row per sequence.
    """

    max_length: int
    packs: list[list[Span]]
    filled: float
    filled_alone: float


@dataclass
class Statistics:
    """Counts of a dataset; what needs a tokenizer is of the rows in `measure`, an even sample of a large one.

    Attributes:
        looked_at: rows counted for turns and kinds.
        kinds: conversations, documents, pairs of answers, and rows that call tools.
        turns: number of user and assistant turns -> rows.
        languages, groups: share of each.
        histogram: rows by tokens.
        middle, longest: tokens of the middle row, and of the longest.
    """

    rows: int
    looked_at: int
    kinds: dict[str, int] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)
    languages: list[Share] = field(default_factory=list)
    groups: list[Share] = field(default_factory=list)
    measure: Measure | None = None
    histogram: list[Bar] = field(default_factory=list)
    middle: int = 0
    longest: int = 0


def statistics(dataset: Dataset, encoder: Encoder | None = None, train_on: TrainOn = "all") -> Statistics:
    """The statistics of a dataset, kept in memory while its rows stay the same."""
    return _kept(dataset.folder, dataset.card.sha256, encoder, train_on)


@lru_cache(maxsize=16)
def _kept(folder: Path, sha256: str, encoder: Encoder | None, train_on: TrainOn) -> Statistics:
    dataset = Dataset.open(folder)
    placed = dataset.spread_rows(_PAGE_ROWS)
    found = Statistics(dataset.card.rows, len(placed), _kinds(row for _, row in placed), _turns(row for _, row in placed))
    if encoder is None:
        return found
    found.measure = measure = measure_dataset(dataset, encoder, train_on=train_on)
    rows = dict(placed)
    counted = [(rows[place], index) for index, place in enumerate(measure.places) if place in rows]
    found.languages = _shares([(row.get("lang", "en"), index) for row, index in counted], measure)
    found.groups = _shares([(row["group"], index) for row, index in counted], measure)
    found.histogram = histogram(measure.tokens)
    found.longest = max(measure.tokens, default=0)
    found.middle = round(quantiles(measure.tokens, n=2)[0]) if len(measure.tokens) > 1 else found.longest
    return found


def _kinds(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for row in rows:
        kinds["documents" if "text" in row else "pairs" if "rejected" in row else "conversations"] += 1
        if any(message.get("tool_calls") for message in row.get("messages", ())):
            kinds["with tools"] += 1
    return dict(kinds)


def _turns(rows: Iterable[dict[str, Any]]) -> dict[int, int]:
    counts = Counter(sum(message["role"] in ("user", "assistant") for message in row["messages"]) for row in rows if "messages" in row)
    return dict(sorted(counts.items()))


def _shares(named: Sequence[tuple[str, int]], measure: Measure) -> list[Share]:
    """The share of each name; an index points into the measure."""
    rows = Counter(name for name, _ in named)
    tokens: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, index in named:
        tokens[name] += measure.tokens[index]
        trained[name] += measure.trained[index]
    return [Share(name, count, percent(count, len(named)), tokens[name], percent(tokens[name], tokens.total()),
                  percent(trained[name], trained.total())) for name, count in rows.most_common(_PARTS_SHOWN)]


def histogram(lengths: Sequence[int]) -> list[Bar]:
    """Rows by tokens, in bars each twice as wide as the one before; none is left out."""
    bars, above, upto = [], 0, _NARROWEST
    longest = max(lengths, default=0)
    while above < max(1, longest):
        bars.append(Bar(above, upto, sum(above < length <= upto or (above == length == 0) for length in lengths)))
        above, upto = upto, upto * 2
    return bars


def packing(measure: Measure, max_length: int) -> Packing:
    """How the rows counted pack into sequences of `max_length` tokens: conversations are cut there, documents go on in the next."""
    lengths = measure.lengths_at(max_length)
    packs = [[Span(measure.places[span.row], span.start, span.end) for span in pack] for pack in pack_rows(lengths, max_length)]
    alone = [[Span(row, start, min(start + max_length, length))] for row, length in enumerate(lengths)
             for start in range(0, length, max_length)]
    return Packing(max_length, packs, filled_share(packs, max_length), filled_share(alone, max_length))


def packs_of(found: Packing, place: int) -> list[list[Span]]:
    """The packs in which a row stands; several where it is longer than one sequence, none where it was not counted."""
    return [pack for pack in found.packs if any(span.row == place for span in pack)]
