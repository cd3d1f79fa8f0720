"""Whether the head of a GGUF file can be what it says, before a library reads it. No torch, no numpy.

The gguf package believes every count: it makes an object for each entry of a list, and for a list that is said to be longer than the file
it does so without end. Here counts are compared with the bytes that are there, and with what any model has.

    magic "GGUF", version u32, tensors u64, pairs u64
    a pair:   name (u64 length, UTF-8), kind u32, value; a list: kind u32, length u64, values
    a tensor: name, dimensions u32, sizes u64 each, kind u32, offset u64
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from core.errors import StudioError

_MAGIC = b"GGUF"
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9
_MOST_PAIRS = 100_000
_MOST_TENSORS = 1_000_000
# The largest vocabularies have some 300,000 tokens, with a number of each and as many merges.
_MOST_ENTRIES = 5_000_000
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 65_536


class _Impossible(Exception):
    """A count that the file cannot have."""


def check_gguf(path: Path) -> None:
    """Go through the head of a GGUF file.

    Raises:
        StudioError: it is cut off, or says of itself what cannot be.
    """
    try:
        with path.open("rb") as stream:
            _Head(stream, path.stat().st_size).check()
    except (OSError, struct.error, _Impossible) as error:
        raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path) from error


class _Head:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size, self._order = stream, size, "<"
        self._entries = 0

    def check(self) -> None:
        if self._stream.read(4) != _MAGIC:
            raise _Impossible
        version = self._number("I")
        if version & 0xFFFF == 0:  # written on a machine with the other order of bytes
            self._order = ">"
        if not version:
            raise _Impossible
        tensors, pairs = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS or pairs > _MOST_PAIRS:
            raise _Impossible
        for _ in range(pairs):
            self._skip_text(_LONGEST_NAME)
            self._skip_value(self._number("I"))
        for _ in range(tensors):
            self._skip_text(_LONGEST_NAME)
            dimensions = self._number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise _Impossible
            self._skip(8 * dimensions + 4 + 8)

    def _number(self, form: str) -> int:
        return struct.unpack(self._order + form, self._stream.read(struct.calcsize(form)))[0]

    def _skip(self, count: int) -> None:
        if count > self._size - self._stream.tell():
            raise _Impossible
        self._stream.seek(count, 1)

    def _skip_text(self, most: int | None = None) -> None:
        length = self._number("Q")
        if most is not None and length > most:
            raise _Impossible
        self._skip(length)

    def _skip_value(self, kind: int) -> None:
        if kind == _TEXT:
            self._skip_text()
        elif kind == _LIST:
            self._skip_list(self._number("I"), self._number("Q"))
        elif kind in _WIDTHS:
            self._skip(_WIDTHS[kind])
        else:
            raise _Impossible

    def _skip_list(self, kind: int, length: int) -> None:
        self._entries += length
        if self._entries > _MOST_ENTRIES:
            raise _Impossible
        if kind == _TEXT:
            for _ in range(length):
                self._skip_text()
        elif kind in _WIDTHS:
            self._skip(length * _WIDTHS[kind])
        else:
            raise _Impossible  # lists of lists: no model has them
