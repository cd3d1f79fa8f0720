"""Packing: several short rows share one training sequence, so that less of a batch is padding.

Only lengths are looked at, so the preview and the training pack alike. Rows in one pack must not see each other: give each its own
positions from 0 and its own block of attention.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

from core.errors import StudioError


class Span(NamedTuple):
    """Tokens `start` to `end` (end excluded) of row number `row`, from 0."""

    row: int
    start: int
    end: int


def pack_rows(lengths: Sequence[int], max_length: int) -> list[list[Span]]:
    """Which rows share a sequence of at most `max_length` tokens.

    Best-fit decreasing: rows are placed longest first, each into the fullest pack that still has room for it (Johnson 1973; needs at
    most 11/9 of the fewest possible packs, plus a constant). A row that fits whole is never split. A row longer than `max_length` is
    split into full sequences and a rest, and the rest is placed like a row: no token is dropped. Who wants long rows cut instead
    encodes them with that limit first. The result depends on the arguments only; shuffle the packs, not the rows.

    Args:
        lengths: tokens of each row; a row of 0 tokens is in no pack.
        max_length: tokens of the longest sequence.

    Returns:
        The packs; the spans of all of them cover every token of every row exactly once.

    Raises:
        StudioError: `max_length` is below 1.
    """
    if max_length < 1:
        raise StudioError("A pack of {length} tokens holds nothing.", "Use a length of 1 or more tokens.", length=max_length)
    packs: list[list[Span]] = []
    rests: list[Span] = []
    for row, length in enumerate(lengths):
        whole = length - length % max_length
        packs += [[Span(row, start, start + max_length)] for start in range(0, whole, max_length)]
        if length > whole:
            rests.append(Span(row, whole, length))
    rests.sort(key=lambda span: span.start - span.end)
    with_room: dict[int, list[list[Span]]] = {}  # free tokens -> packs with exactly that many
    rooms: list[int] = []  # its keys, ascending
    for span in rests:
        length = span.end - span.start
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, pack = max_length, []
            packs.append(pack)
        else:
            room = rooms[place]
            pack = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        pack.append(span)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(pack)
    return packs


def filled_share(packs: Sequence[Sequence[Span]], max_length: int) -> float:
    """The share of the sequences that rows fill, 0 to 1; the rest is padding."""
    used = sum(span.end - span.start for pack in packs for span in pack)
    return used / (len(packs) * max_length) if packs else 0.0
