"""The text of an answer as it may be shown: without special tokens, without half characters, and cut before a stop word."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.encode import Encoder

# An answer whose end is one piece of at most so many tokens, so often and so long, has got stuck.
_LOOP_PERIODS, _LOOP_TIMES, _LOOP_TOKENS = 60, 3, 40


class TextWriter:
    """Turns ids into text piece by piece; waits while the last character is incomplete. Special tokens never show.

    Args:
        stop: the text ends before the first of these; what may be the beginning of one is held back.
    """

    def __init__(self, encoder: Encoder, stop: Sequence[str] = ()) -> None:
        self.encoder, self.ids, self.shown = encoder, [], ""
        self.stop = stop
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that this token lets appear."""
        self.ids.append(token)
        return "" if self.is_stopped else self._show(self.encoder.decode(self.ids).rstrip("\ufffd"), is_last=False)

    def rest(self) -> str:
        """What was held back for a character that never became whole, or a stop word that did not come."""
        return "" if self.is_stopped else self._show(self.encoder.decode(self.ids), is_last=True)

    def _show(self, text: str, is_last: bool) -> str:
        places = [place for word in self.stop if (place := text.find(word)) >= 0]
        if places:
            self.is_stopped = True
            text = text[:min(places)]
        elif not is_last:
            text = text[:len(text) - self._held(text)]
        piece = text[len(self.shown):]
        self.shown += piece
        return piece

    def _held(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop word."""
        return max((length for word in self.stop for length in range(1, len(word)) if text.endswith(word[:length])), default=0)


def is_stuck(ids: Sequence[int]) -> bool:
    """Whether an answer's end is one short piece over and over."""
    for period in range(1, _LOOP_PERIODS + 1):
        length = max(_LOOP_TIMES * period, _LOOP_TOKENS)
        if len(ids) >= length and all(ids[-index] == ids[-index - period] for index in range(1, length - period + 1)):
            return True
    return False
