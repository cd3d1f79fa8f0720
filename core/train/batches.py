"""Which rows of an update go through the model together. Arithmetic only: it decides how an update is computed, never what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.data.encode import Encoded
from core.data.pack import pack_rows


@dataclass(frozen=True)
class Fit:
    """What the memory holds at a time.

    Attributes:
        tokens: of a micro-batch at most, padding included; a single row may be longer.
        rows: of a micro-batch at most; None for as many as the tokens allow.
    """

    tokens: int
    rows: int | None = None

    def halved(self, parts: Sequence[Sequence[Encoded]]) -> Fit | None:
        """Half of the largest of the micro-batches `parts`; None when each of them is a single row already."""
        most = max(len(part) for part in parts)
        if most <= 1:
            return None
        return replace(self, rows=-(-most // 2), tokens=max(1, max(padded_tokens(part) for part in parts) // 2))


def padded_tokens(rows: Sequence[Encoded]) -> int:
    return len(rows) * max(len(row.ids) for row in rows)


def share_rows(rows: Sequence[Encoded], ranks: int) -> list[list[Encoded]]:
    """The rows of an update shared among processes: nearly as many rows and as many tokens for each.

    Longest first, dealt to and fro (1 2 3, 3 2 1, ...). A process may get none when there are fewer rows than processes.
    """
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    shares: list[list[Encoded]] = [[] for _ in range(ranks)]
    for place, row in enumerate(ordered):
        turn, seat = divmod(place, ranks)
        shares[seat if turn % 2 == 0 else ranks - 1 - seat].append(row)
    return shares


def split_rows(rows: Sequence[Encoded], fit: Fit, is_packed: bool = False) -> list[list[Encoded]]:
    """Cut rows into micro-batches.

    Padded ones hold rows of similar length, so that little is padded; packed ones hold whole rows that fill the tokens well.
    """
    if not rows:
        return []
    return _packed(rows, fit) if is_packed else _padded(rows, fit)


def _padded(rows: Sequence[Encoded], fit: Fit) -> list[list[Encoded]]:
    parts: list[list[Encoded]] = [[]]
    for row in sorted(rows, key=lambda row: len(row.ids)):
        count = len(parts[-1]) + 1
        if parts[-1] and (count * len(row.ids) > fit.tokens or count > (fit.rows or count)):
            parts.append([])
        parts[-1].append(row)
    return parts


def _packed(rows: Sequence[Encoded], fit: Fit) -> list[list[Encoded]]:
    longest = max(len(row.ids) for row in rows)
    packs = pack_rows([len(row.ids) for row in rows], max(fit.tokens, longest))  # the longest row is never split
    limit = fit.rows or len(rows)
    return [[rows[span.row] for span in pack[first:first + limit]] for pack in packs for first in range(0, len(pack), limit)]
