"""Tables as text: comma, semicolon, tab or bar between the cells, quotes around those that need them."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.data.conversations import known_columns
from core.errors import StudioError
from core.words import Text

_LARGEST_CELL = 20_000_000  # characters
# A column's name is short and does not end like a sentence.
_NAME = re.compile(r"\S(?:[^\n]{0,58}[^\s.!?。！？…])?")
_MANY_COLUMNS = 50  # a header that goes on behind the sample


@dataclass(slots=True)
class Row:
    """One row: the line it begins in, and its cells by column, or why it cannot be read and its text."""

    line: int
    cells: dict[str, str] | None = None
    problem: Text | None = None
    raw: str = ""


def delimiter_of(sample: str) -> str | None:
    """The delimiter when the text is a table: a short header, and as many cells in most lines below it."""
    text = sample.lstrip("\ufeff").replace("\x00", "")
    text = re.sub(r"^sep=.\r?\n", "", text)  # Excel
    header = text.lstrip().split("\n", 1)[0].strip()
    if header.strip('"').lower() in ("text", "messages", "conversations"):
        return ","
    delimiter = max(",;\t|", key=header.count)
    if not header.count(delimiter):
        return None
    try:
        rows = [row for row in itertools.islice(csv.reader(text.lstrip().splitlines(keepends=True), delimiter=delimiter), 40) if row]
    except csv.Error:
        rows = [header.split(delimiter)]
    names = [name.strip() for name in rows[0]]
    if len(rows) == 1 and len(names) > _MANY_COLUMNS:
        names.pop()  # it may be cut off
    if known_columns(names):
        return delimiter
    are_names = len(set(names)) == len(names) and all(_NAME.fullmatch(name) for name in names)
    if not are_names or (len(rows) == 1 and len(names) < _MANY_COLUMNS):
        return None
    same = sum(len(row) == len(names) for row in rows[1:])
    return delimiter if same >= 0.8 * (len(rows) - 1) else None


def table_rows(stream: Iterable[str], name: str, delimiter: str, is_mapped: bool = False) -> Iterator[Row]:
    """The rows below the header.

    Args:
        stream: the lines.
        name: of the file, for messages.
        delimiter: see `delimiter_of`.
        is_mapped: the columns were named by the reader, so they need not be known.

    Raises:
        StudioError: no column is known, or one stands there twice.
    """
    csv.field_size_limit(_LARGEST_CELL)
    lines = _Lines(line.replace("\x00", "") for line in stream)
    if lines.peek().startswith("sep="):
        next(lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in next(reader)]
    except csv.Error:
        columns = lines.kept[0].strip().split(delimiter)
    doubled = [column for column in columns if column and columns.count(column) > 1] if len(columns) < 1000 else []
    if doubled:
        raise StudioError("The column {column} of {name} stands there twice.", "Rename one of the two.", column=doubled[0], name=name)
    if not is_mapped and not known_columns(columns):
        raise StudioError("No column of {name} is known; it begins with: {columns}.",
                          "Name the columns question and answer, or say which is which: --column question=NAME --column answer=NAME.",
                          name=name, columns=", ".join(columns)[:120] or "-")
    yield from _rows(lines, columns, delimiter)


def _rows(lines: _Lines, columns: list[str], delimiter: str) -> Iterator[Row]:
    while True:
        lines.kept.clear()
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        first = lines.number + 1
        try:
            for cells in reader:
                if cells:
                    if len(cells) > len(columns) and any(cells[len(columns):]):
                        yield Row(first, raw="".join(lines.kept), problem=Text(
                            "it has {cells} cells and there are {columns} columns", cells=len(cells), columns=len(columns)))
                    else:
                        cells += [""] * (len(columns) - len(cells))
                        yield Row(first, {column: cell for column, cell in zip(columns, cells, strict=False) if column})
                lines.kept.clear()
                first = lines.number + 1
            return
        except csv.Error as error:
            # A quote that is never closed would swallow the rest: its line is refused, the lines behind it are read anew.
            raw, rest = lines.kept[0], lines.kept[1:]
            yield Row(first, problem=Text("a quote in it is opened and not closed ({reason})", reason=error), raw=raw)
            lines.put_back(rest)


class _Lines:
    """Lines that remember those of the present record, so that they can be read again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.kept, self.number = lines, [], 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.kept.append(line)
        self.number += 1
        return line

    def peek(self) -> str:
        first = next(self._lines, "")
        self._lines = itertools.chain([first], self._lines)
        return first

    def put_back(self, lines: list[str]) -> None:
        self._lines = itertools.chain(lines, self._lines)
        self.number -= len(lines)
        self.kept.clear()
