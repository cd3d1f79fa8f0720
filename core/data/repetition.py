"""Rows that say the same, nearly the same, or contradict each other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from core.data.findings import Finding, Row, answers_of, percent, said_exactly, said_roughly
from core.data.library import texts_of
from core.data.wordings import normalised
from core.words import Text

_SHINGLE = 8  # characters; of Chinese about four words, of English one or two
_NEAR = 0.8  # share of shingles in common (Jaccard) from which two rows are nearly the same
_SKETCH = 6  # smallest hashes kept of a row; two rows of Jaccard 0.8 share one of six with a chance above 0.99
_SHORTEST = 60  # characters; shorter rows differ in one word and mean something else
_LONGEST = 4000  # characters looked at


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
    smallest = sorted(mine)[:_SKETCH]
    candidates = {other for value in smallest for other in sketches.get(value, ())[-4:]}
    for value in smallest:
        sketches.setdefault(value, []).append(place)
    for other in sorted(candidates):
        theirs = _shingles(said_roughly(rows[other]))
        # Both sides have their answers to one question, or their questions to one answer, in common: those are not the same row.
        if len(mine & theirs) >= _NEAR * len(mine | theirs) and _same_turns(rows[place], rows[other]):
            return True
    return False


def _same_turns(one: Row, other: Row) -> bool:
    mine, theirs = texts_of(one), texts_of(other)
    return len(mine) == len(theirs) and all(_alike(normalised(a), normalised(b)) for a, b in zip(mine, theirs, strict=True))


def _alike(one: str, other: str) -> bool:
    if min(len(one), len(other)) < _SHORTEST:
        return one == other
    a, b = _shingles(one), _shingles(other)
    return len(a & b) >= _NEAR * len(a | b)


def _shingles(text: str) -> set[int]:
    text = text[:_LONGEST]
    return {zlib.crc32(text[start:start + _SHINGLE].encode()) for start in range(len(text) - _SHINGLE + 1)}


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
