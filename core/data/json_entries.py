"""The entries of a JSON text, one after another, without holding the whole of it.

A list may be larger than the memory, cut off, or broken in the middle: what stands before the break is read, the broken entry is
reported with its place, and reading goes on at the next entry that begins like the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from core.words import Text

_CHUNK = 1 << 20  # characters
LARGEST_ENTRY = 1 << 27  # characters of one entry; a file that is broken is not read into memory as a whole
_SPACE = re.compile(r"[\s,]*")
_NEAR_END = 16  # an error this close to the end of what was read may only be for want of the rest


@dataclass(slots=True)
class Entry:
    """One entry: its number from 1, the line it begins in, and either its value or why it cannot be read, with its text."""

    number: int
    line: int
    value: Any = None
    problem: Text | None = None
    raw: str = ""


class DoubledKey(ValueError):
    """A record has the same field twice with different values."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise DoubledKey(key)
    return found


# Not strict: line breaks and tabs inside a text are common and harmless.
DECODER = json.JSONDecoder(object_pairs_hook=_unique, strict=False)


def why_unreadable(error: Exception) -> Text:
    """The reason for an entry that cannot be read, in words."""
    if isinstance(error, DoubledKey):
        return Text("its field {field} stands there twice with different values", field=error.key[:60])
    if isinstance(error, RecursionError):
        return Text("it is nested too deeply")
    return Text("it is not complete JSON ({reason})", reason=getattr(error, "msg", None) or str(error)[:80])


class _Window:
    """A stretch of the text, moved on as entries are taken."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text, self.at, self.is_end = stream, "", 0, False
        self._line, self._counted = 1, 0  # the line of the character at `_counted`

    def more(self) -> bool:
        """Read on, as much as is held, at least a chunk; False at the end."""
        self.line_here()
        kept, self._counted = self.text[self.at:], 0
        added = self.stream.read(max(_CHUNK, len(kept)))
        self.text, self.at, self.is_end = kept + added, 0, not added
        return bool(added)

    def skip_space(self) -> str:
        """Move to the next character that is neither space nor comma, and return it; empty at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def line_here(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line


def read_entries(stream: TextIO) -> Iterator[Entry]:
    """The entries of a JSON list, or of JSON values that follow each other."""
    window, number, first_key = _Window(stream), 0, None
    is_list = window.skip_space() == "["
    if is_list:
        window.at += 1
    while True:
        char = window.skip_space()
        if not char:
            if is_list:
                yield Entry(number + 1, window.line_here(), problem=Text("the list is not closed; the end may be missing"))
            return
        if is_list and char == "]":
            window.at += 1
            if window.skip_space():
                yield Entry(number + 1, window.line_here(), raw=window.text[window.at:window.at + 1000],
                            problem=Text("more text stands behind the end of the list"))
            return
        number += 1
        entry = _next_entry(window, number)
        if entry.problem is None and first_key is None and isinstance(entry.value, dict):
            first_key = next(iter(entry.value), None)
        if entry.problem is None or isinstance(entry.value, _Whole):
            entry.value = None if entry.problem else entry.value
            yield entry
            continue
        start = window.at
        if _resume(window, first_key):
            entry.raw = window.text[start:window.at].rstrip().rstrip(",")
            yield entry
            continue
        entry.raw = window.text[start:start + _CHUNK]
        is_cut = window.is_end and number > 1 or not window.text[start:].rstrip().endswith("]")
        entry.problem = Text("the file ends in the middle of it") if is_cut and window.is_end else Text(
            "{reason}; nothing after it was read", reason=entry.problem)
        yield entry
        return


class _Whole:
    """Marks an entry that is refused although its end is known, so that reading simply goes on."""


def _next_entry(window: _Window, number: int) -> Entry:
    """The entry that begins at the window's place; the window moves behind it unless it is broken."""
    while True:
        try:
            value, end = DECODER.raw_decode(window.text, window.at)
        except DoubledKey as error:
            return _skipped(window, number, error)
        except (ValueError, RecursionError) as error:
            if not _may_be_cut(error, window) or len(window.text) - window.at > LARGEST_ENTRY or not window.more():
                return Entry(number, window.line_here(), problem=why_unreadable(error))
            continue
        # A number at the end of what was read may go on; an object or a list is closed.
        if end == len(window.text) and not isinstance(value, (dict, list)) and window.more():
            continue
        entry = Entry(number, window.line_here(), value)
        window.at = end
        return entry


def _skipped(window: _Window, number: int, error: DoubledKey) -> Entry:
    """Move behind an entry with a doubled field; the plain decoder finds its end."""
    line = window.line_here()
    while True:
        try:
            _, end = json.JSONDecoder(strict=False).raw_decode(window.text, window.at)
        except (ValueError, RecursionError):
            if not window.more():
                return Entry(number, line, problem=why_unreadable(error))
            continue
        raw, window.at = window.text[window.at:end], end
        return Entry(number, line, _Whole(), why_unreadable(error), raw)


def _may_be_cut(error: Exception, window: _Window) -> bool:
    """Whether the error may be only that the entry goes on behind what was read."""
    if window.is_end or not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - _NEAR_END


def _resume(window: _Window, first_key: str | None) -> bool:
    """Move to the next entry that begins with the same field as the others; False when there is none."""
    if first_key is None:
        guessed = re.match(r'\{\s*"([^"\\]{1,80})"', window.text[window.at:window.at + 200])
        if guessed is None:
            return False
        first_key = guessed[1]
    beginning = re.compile(r'[,\s]\s*(?=\{\s*"' + re.escape(first_key) + r'"\s*:)')
    while True:
        found = beginning.search(window.text, window.at + 1)
        if found:
            window.at = found.end()
            return True
        if len(window.text) - window.at > LARGEST_ENTRY or not window.more():
            return False
