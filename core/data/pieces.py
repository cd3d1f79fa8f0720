"""A conversation cut into the pieces that a reader can tell apart: what the model sees, and which of it is trained."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from core.data.encode import Encoded, Encoder

Kind = Literal["read", "trained", "special", "special_trained"]
# Whitespace that would not be seen, as readers of code know it.
_VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Piece:
    """One or more tokens that together write at least one character.

    Attributes:
        text: what they write, as it stands in the conversation.
        kind: read by the model only, trained, or a control token, trained or not.
        ids: the token ids.
    """

    text: str
    kind: Kind
    ids: tuple[int, ...]

    @property
    def visible(self) -> str:
        """The text with spaces and line ends shown, and invisible characters by their number."""
        return "".join(_VISIBLE.get(char) or (f"⟨{ord(char):04X}⟩" if _is_invisible(char) else char) for char in self.text)

    @property
    def ends_line(self) -> bool:
        return self.text.endswith("\n")

    @property
    def is_trained(self) -> bool:
        return self.kind in ("trained", "special_trained")


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") or char in "\u00a0\u3000"


def pieces_of(encoder: Encoder, encoded: Encoded, limit: int | None = None) -> list[Piece]:
    """The pieces of a conversation, in order.

    A character that several tokens write together (rare Chinese characters, emoji) is one piece.

    Args:
        encoder: the one that made `encoded`.
        encoded: the conversation.
        limit: at most so many tokens.
    """
    pieces: list[Piece] = []
    last_end = -1
    for index, (token, trained, (first, end)) in enumerate(zip(encoded.ids, encoded.trained, encoded.offsets, strict=True)):
        if limit is not None and index >= limit:
            break
        if pieces and first < last_end:  # it goes on with the character of the token before
            before = pieces[-1]
            pieces[-1] = Piece(before.text + encoded.text[last_end:end], before.kind, (*before.ids, token))
        else:
            kind: Kind = "trained" if trained else "read"
            if token in encoder.special_ids:
                kind = "special_trained" if trained else "special"
            pieces.append(Piece(encoded.text[first:end], kind, (token,)))
        last_end = max(last_end, end)
    return pieces
