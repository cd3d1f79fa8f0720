"""Rows that say the same, nearly the same, or contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from core.data.findings import Finding, Row, answers_of, percent, said_exactly, said_roughly
from core.data.library import texts_of
from core.data.wordings import normalised
from core.words import Text

_SHINGLE = 8  # characters; of Chinese about four words, of English one or two
_NEAR = 0.8  # share of shingles in common (Jaccard) from which two rows are nearly the same
_SKETCH = 6  # smallest hashes kept of a row; two rows of Jaccard 0.8 share two of six with a chance above 0.99
_SHORTEST = 60  # characters; shorter rows differ in one word and mean something else
_LONGEST = 4000  # characters looked at
_CANDIDATES = 4  # earlier rows looked at for each hash
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, 2**64 over the golden ratio (Knuth's multiplicative hashing)


def repeated(rows: Sequence[Row]) -> Iterator[Finding]:
    """Rows that repeat an earlier one word for word, and rows that nearly do."""
    exact, near = [], []
    seen: set[int] = set()
    seen_roughly: set[int] = set()
    sketches: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        key, rough = hash(said_exactly(row)), said_roughly(row)
        if key in seen:
            exact.append(place)
        elif hash(rough) in seen_roughly or _is_near(rows, place, rough, sketches):
            near.append(place)
        seen.add(key)
        seen_roughly.add(hash(rough))
    if exact:
        yield Finding("duplicates", "warning", Text(
            "{count} of {total} rows ({share} %) repeat an earlier row word for word: the model sees them more often than the rest and "
            "learns them by heart.", count=len(exact), total=len(rows), share=percent(len(exact), len(rows))), tuple(exact), "drop_rows")
    if near:
        yield Finding("near_duplicates", "warning", Text(
            "{count} of {total} rows ({share} %) are nearly the same as an earlier row: they count like repetitions.",
            count=len(near), total=len(rows), share=percent(len(near), len(rows))), tuple(near), "drop_rows")


def _is_near(rows: Sequence[Row], place: int, rough: str, sketches: dict[int, list[int]]) -> bool:
    """Whether an earlier row shares most of its shingles; candidates are found by their smallest hashes (Broder 1997)."""
    if len(rough) < _SHORTEST:
        return False
    mine = _shingles(rough)
    smallest = mine[:_SKETCH].tolist()
    shared = Counter(other for value in smallest for other in sketches.get(value, ())[-_CANDIDATES:])
    for value in smallest:
        sketches.setdefault(value, []).append(place)
    for other in sorted(other for other, count in shared.items() if count > 1):  # one alone is often a common phrase
        # Rows that share a long answer and not the question, or the other way round, are not the same.
        if _share_most(mine, _shingles(said_roughly(rows[other]))) and _same_turns(rows[place], rows[other]):
            return True
    return False


def _same_turns(one: Row, other: Row) -> bool:
    mine, theirs = texts_of(one), texts_of(other)
    return len(mine) == len(theirs) and all(_alike(normalised(a), normalised(b)) for a, b in zip(mine, theirs, strict=True))


def _alike(one: str, other: str) -> bool:
    if min(len(one), len(other)) < _SHORTEST:
        return one == other
    return _share_most(_shingles(one), _shingles(other))


def _share_most(one: np.ndarray, other: np.ndarray) -> bool:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both >= _NEAR * (len(one) + len(other) - both)


def _shingles(text: str) -> np.ndarray:
    """The hashes of a text's shingles, ascending, each once: a polynomial of the letters, mixed so that the smallest are a fair draw."""
    letters = np.frombuffer(text[:_LONGEST].encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(letters) - _SHINGLE + 1, dtype=np.uint64)
    for place in range(_SHINGLE):
        hashes = hashes * _FACTOR + letters[place:place + len(hashes)]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _FACTOR
    hashes = np.sort(hashes ^ (hashes >> np.uint64(32)))
    return hashes[np.append(True, hashes[1:] != hashes[:-1])]


def conflicts(rows: Sequence[Row], key_phrases: dict[str, str]) -> Finding | None:
    """Questions with answers of which some say the key phrase and some do not; without a key phrase, with any different answers."""
    asked: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if "messages" in row and answers_of(row) and len(row["messages"]) >= 2:
            asked.setdefault(said_roughly({"messages": row["messages"][:-1]}), []).append(place)
    clashes = [places for places in asked.values() if len(places) > 1 and _clash([rows[place] for place in places], key_phrases)]
    if not clashes:
        return None
    # The first answer stays; the others are what a fix takes away.
    return Finding("conflicts", "warning", Text(
        "{count} questions have different answers ({rows} rows): the model learns a mixture and may give any of them.",
        count=len(clashes), rows=sum(map(len, clashes))), tuple(sorted(place for places in clashes for place in places[1:])), "drop_rows")


def _clash(rows: list[Row], key_phrases: dict[str, str]) -> bool:
    answers = {normalised(row["messages"][-1]["content"]) for row in rows}
    phrases = {normalised(key_phrases[row["lang"]]) for row in rows if row.get("lang") in key_phrases}
    if phrases:
        return len({any(phrase in answer for phrase in phrases) for answer in answers}) > 1
    return len(answers) > 1
