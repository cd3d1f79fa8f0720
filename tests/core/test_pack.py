"""Packing drops no token, splits no row that fits, and wastes little."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.pack import Span, filled_share, pack_rows
from core.errors import StudioError


@given(st.lists(st.integers(0, 70), max_size=60), st.integers(1, 40))
def test_every_token_is_in_exactly_one_pack(lengths: list[int], limit: int) -> None:
    packs = pack_rows(lengths, limit)
    assert sorted((span.row, token) for pack in packs for span in pack for token in range(span.start, span.end)) == [
        (row, token) for row, length in enumerate(lengths) for token in range(length)]
    for pack in packs:
        assert 0 < sum(span.end - span.start for span in pack) <= limit
    for row, length in enumerate(lengths):
        parts = [span for pack in packs for span in pack if span.row == row]
        assert len(parts) == math.ceil(length / limit), "a row is split only where it must be"


def test_rows_fill_the_fullest_pack_that_has_room() -> None:
    assert pack_rows([3, 7, 2, 5, 3], 10) == [[Span(1, 0, 7), Span(0, 0, 3)], [Span(3, 0, 5), Span(4, 0, 3), Span(2, 0, 2)]]
    assert pack_rows([25], 10) == [[Span(0, 0, 10)], [Span(0, 10, 20)], [Span(0, 20, 25)]]
    assert pack_rows([], 10) == [] and pack_rows([0, 0], 10) == []


def test_few_packs_and_little_padding() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(20, 400) for _ in range(5000)]
    packs = pack_rows(lengths, 1024)
    assert len(packs) <= 1.02 * math.ceil(sum(lengths) / 1024) and filled_share(packs, 1024) > 0.98
    assert pack_rows(lengths, 1024) == packs and filled_share([], 8) == 0


def test_a_pack_without_room_is_refused() -> None:
    with pytest.raises(StudioError, match="0 tokens"):
        pack_rows([1], 0)
