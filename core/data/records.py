"""The records of a file, one after another: JSON, JSON Lines, CSV and other tables, Parquet, YAML, plain text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import yaml

from core.data.delimited import delimiter_of, table_rows
from core.data.files import FileFacts, stray_bytes
from core.data.json_entries import DECODER, read_entries, why_unreadable
from core.errors import StudioError
from core.words import Text

_SAMPLE_LINES, _SAMPLE = 20, 1 << 18
LARGEST_OBJECT = 500_000_000  # bytes of a file that is one JSON object and must be held as a whole
# Parquet packs well, but not as well as a bomb does.
_MOST_ROWS_PER_BYTE, _MOST_UNPACKED_TIMES, _ALWAYS_UNPACKED = 1000, 500, 200_000_000
_LARGEST_YAML, _LONGEST_DOCUMENT = 20_000_000, 200_000
_WRAPPERS = ("data", "rows", "train", "examples", "items", "conversations", "instances")
_LINE, _ENTRY, _ROW, _DOCUMENT = "line {number}", "entry {number}", "row {number}", "document {number}"
_BAD_BYTES = Text("it holds bytes that are not of the encoding {encoding}", encoding="UTF-8")
_TURN = {"role", "from"}
# A list item, or a name whose list begins on the next line; comments, `---` and `&anchors` may stand before.
# No two neighbours may take the same blanks: on 200,000 empty lines that would search for minutes.
_YAML = re.compile(r"\s*(?:#[^\n]*\n\s*)*(?:---[^\S\n]*\n\s*)?(?:&\w+\s*)?"
                   r"(?:- +[\w\"'*&{\[]|-\s*\n|\w[\w ]{0,30}:[^\S\n]*(?:&\w+[^\S\n]*)?\n\s*-)")
_DIVIDER = re.compile(r"\f|<\|endoftext\|>|(?:\r?\n[ \t]*){3,}")


@dataclass(slots=True)
class Record:
    """One record of a file.

    Attributes:
        where: template of its place, such as `line {number}`.
        number: from 1.
        value: what it holds.
        problem: why it cannot be read, else None.
        raw: its text, where it cannot be read.
        note: what was changed to read it, else None.
    """

    where: str
    number: int
    value: Any = None
    problem: Text | None = None
    raw: str = ""
    note: Text | None = None

    @property
    def place(self) -> Text:
        return Text(self.where, number=self.number)


@dataclass
class Opened:
    """A file being read.

    Attributes:
        form: what it turned out to be: JSON, JSON Lines, table, Parquet, YAML or plain text.
        records: its records.
        position: how many bytes have been read.
    """

    form: str
    records: Iterator[Record]
    position: Callable[[], int]


def open_records(facts: FileFacts, is_mapped: bool = False) -> Opened:
    """Begin to read a file.

    Args:
        facts: of the file.
        is_mapped: the reader named the columns or the layout, so a table of unknown columns is read all the same.

    Raises:
        StudioError: it holds nothing that can be rows.
    """
    if facts.kind == "parquet":
        return _parquet(facts)
    stream = facts.path.open(encoding=facts.encoding, errors="surrogateescape" if facts.is_damaged else "replace", newline="")
    sample = stream.read(_SAMPLE)
    stream.seek(0)
    start = sample.lstrip("\ufeff \t\r\n\x00")[:1]
    if start == "[" and not _is_lines_of_lists(sample):
        form, records = "JSON", _array(stream, facts)
    elif start and start in "[{":
        form, records = _objects(stream, sample, facts)
    elif (loaded := _yaml_records(sample, facts)) is not None:
        form, records = "YAML", _numbered(loaded)
    elif (delimiter := delimiter_of(sample)) is not None:
        form, records = "table", _table(stream, facts.name, delimiter, is_mapped)
    else:
        form, records = "plain text", _documents(stream)
    records = _without_stray_bytes(records) if facts.is_damaged else records
    return Opened(form, _closing(records, stream), lambda: facts.size if stream.closed else stream.buffer.tell())


def _closing(records: Iterator[Record], stream: TextIO) -> Iterator[Record]:
    with stream:
        yield from records


def _without_stray_bytes(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        if record.problem is None and _has_stray_bytes(record.value):
            record.problem, record.raw = _BAD_BYTES, record.raw or repr(record.value)
        yield record


def _has_stray_bytes(value: Any) -> bool:
    if isinstance(value, str):
        return stray_bytes(value)
    if isinstance(value, dict):
        return any(map(_has_stray_bytes, itertools.chain(value, value.values())))
    return isinstance(value, (list, tuple)) and any(map(_has_stray_bytes, value))


def _parsed(text: str) -> Any:
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _is_lines_of_lists(sample: str) -> bool:
    lines = [line for line in sample.split("\n", 2)[:2] if line.strip()]
    return len(lines) == 2 and lines[1].lstrip().startswith("[") and isinstance(_parsed(lines[0].lstrip("\ufeff")), list)


def _array(stream: TextIO, facts: FileFacts) -> Iterator[Record]:
    """The entries of a list. A list of turns is one conversation."""
    entries = read_entries(_skip_mark(stream))
    first = next(entries, None)
    if first is None:
        yield Record(_ENTRY, 1, problem=Text("the list is empty"))
        return
    is_turn = isinstance(first.value, dict) and bool(_TURN & first.value.keys()) and "messages" not in first.value
    if is_turn and facts.size < _LARGEST_YAML:
        rest = list(entries)
        if all(entry.problem is None and isinstance(entry.value, dict) and _TURN & entry.value.keys() for entry in rest):
            yield Record(_ENTRY, 1, {"messages": [first.value, *(entry.value for entry in rest)]})
            return
        entries = iter(rest)
    for entry in itertools.chain([first], entries):
        if entry.problem is not None:
            problem = Text("from line {line}: {reason}", line=entry.line, reason=entry.problem)
            yield Record(_ENTRY, entry.number, problem=problem, raw=entry.raw)
        else:
            yield Record(_ENTRY, entry.number, entry.value)


def _skip_mark(stream: TextIO) -> TextIO:
    """Behind a second byte order mark, zero bytes or blank lines at the beginning."""
    position = stream.tell()
    while (char := stream.read(1)) and char in "\ufeff \t\r\n\x00":
        position = stream.tell()
    stream.seek(position)
    return stream


def _objects(stream: TextIO, sample: str, facts: FileFacts) -> tuple[str, Iterator[Record]]:
    """A file that begins with an object: JSON Lines, one object with the list inside, or objects one after another."""
    first = _skip_mark(stream).readline()
    is_only = not stream.read(1 << 16).strip()
    stream.seek(0)
    whole = _parsed(first)
    if isinstance(whole, (dict, list)) and not is_only:
        return "JSON Lines", _json_lines(stream)
    if whole is None and facts.size <= LARGEST_OBJECT:
        whole = _parsed(_skip_mark(stream).read())
        stream.seek(0)
    if isinstance(whole, dict):
        return "JSON", _numbered(_unwrapped(whole))
    if any(isinstance(_parsed(line), (dict, list)) for line in sample.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES]):
        return "JSON Lines", _json_lines(stream)  # its first lines are the broken ones
    if whole is None and facts.size > LARGEST_OBJECT:
        raise StudioError("The file {name} is one JSON object of {size} MB; {limit} MB fit.",
                          "Write its list as JSON Lines: one record a line.", name=facts.name, size=facts.size // 10**6,
                          limit=LARGEST_OBJECT // 10**6)
    return "JSON", _array(stream, facts)


def _unwrapped(whole: dict[str, Any]) -> list[Any]:
    """The list inside `{"data": [...]}`; else the object itself is the only record."""
    for key in _WRAPPERS:
        inner = whole.get(key)
        if isinstance(inner, list) and inner and all(isinstance(entry, dict) for entry in inner) and not _TURN & inner[0].keys():
            return inner
    return [whole]


def _numbered(entries: list[Any]) -> Iterator[Record]:
    for number, entry in enumerate(entries, 1):
        yield Record(_ENTRY, number, entry)


def _json_lines(stream: TextIO) -> Iterator[Record]:
    decode, stream = DECODER.decode, _skip_mark(stream)
    for number, line in enumerate(stream, 1):
        text = line.strip()
        if not text:
            continue
        try:
            yield Record(_LINE, number, decode(text))
        except (ValueError, RecursionError) as error:
            if "\x00" in text and (value := _parsed(text.replace("\x00", ""))) is not None:
                yield Record(_LINE, number, value, note=Text("zero bytes were removed"))
            else:
                yield Record(_LINE, number, problem=why_unreadable(error), raw=text)


def _yaml_records(sample: str, facts: FileFacts) -> list[Any] | None:
    """The records of a YAML file of records, None for any other text.

    Raises:
        StudioError: its records refer to themselves, or unfold into too much.
    """
    if facts.size > _LARGEST_YAML or not _YAML.match(sample):
        return None
    # As yaml.safe_load, in C where it is there: ten times faster.
    text, loader = facts.path.read_text(encoding=facts.encoding, errors="replace"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = loader(text)
        node = document.get_single_node()
        # Before anything is made of it: `<<: [*a, *a]` copies what it refers to.
        if _unfolds_too_far(node):
            raise _unfolds(facts)
        loaded = document.construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    records = _unwrapped(loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(records, list) or not any(isinstance(record, (dict, list)) for record in records):
        return None
    if _unfolds_too_far(records):
        raise _unfolds(facts)
    return records


def _unfolds(facts: FileFacts) -> StudioError:
    return StudioError("The YAML file {name} refers to itself, or unfolds without end.", "Write each record out; use no `&` and `*`.",
                       name=facts.name)


def _unfolds_too_far(loaded: Any, limit: int = 2_000_000) -> bool:
    """Whether a value contains itself, or has more than `limit` parts once its references are written out."""
    count, above = 0, set()

    def walk(value: Any) -> bool:
        nonlocal count
        count += 1
        if count > limit:
            return True
        if isinstance(value, yaml.MappingNode):
            parts: Iterable[Any] = (part for pair in value.value for part in pair)
        elif isinstance(value, yaml.SequenceNode):
            parts = value.value
        elif isinstance(value, (dict, list)):
            parts = value.values() if isinstance(value, dict) else value
        else:
            return False
        if id(value) in above:
            return True
        above.add(id(value))
        too_far = any(map(walk, parts))
        above.discard(id(value))
        return too_far

    try:
        return walk(loaded)
    except RecursionError:
        return True


def _table(stream: TextIO, name: str, delimiter: str, is_mapped: bool) -> Iterator[Record]:
    for row in table_rows(_skip_mark(stream), name, delimiter, is_mapped):
        yield Record(_LINE, row.line, row.cells, row.problem, row.raw)


def _documents(stream: TextIO) -> Iterator[Record]:
    """Plain text: documents are divided by two blank lines, a form feed or `<|endoftext|>`; without those it is one document.

    A longer one goes on in the next record, divided at a paragraph, so that memory stays flat.
    """
    number, held = 0, ""
    is_end = False
    while not is_end:
        added = _skip_mark(stream).read(_SAMPLE) if not number and not held else stream.read(_SAMPLE)
        is_end = not added
        whole = _DIVIDER.split(held + added)
        held = "" if is_end else whole.pop()
        parts = [(part, None) for part in whole]
        while len(held) > _LONGEST_DOCUMENT:
            found = (held.rfind(mark, 1, _LONGEST_DOCUMENT) for mark in ("\n\n", "\n", " "))
            place = next((place for place in found if place > 0), _LONGEST_DOCUMENT)
            parts.append((held[:place], Text("a long text goes on in the next row")))
            held = held[place:]
        for part, note in parts:
            if part.strip():
                number += 1
                yield Record(_DOCUMENT, number, {"text": part.strip("\r\n")}, note=note)


def _parquet(facts: FileFacts) -> Opened:
    import pyarrow as pa
    import pyarrow.parquet as pq

    unreadable = (pa.ArrowException, OSError, ValueError)  # ValueError: a text in it is not UTF-8
    done = 0
    try:
        file = pq.ParquetFile(facts.path)
    except unreadable as error:
        raise StudioError("The Parquet file {name} cannot be read: {reason}.", "Fetch it again; it may be cut off.", name=facts.name,
                          reason=_first_line(error)) from error
    total, unpacked = file.metadata.num_rows, sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
    if total > _MOST_ROWS_PER_BYTE * facts.size or unpacked > max(_MOST_UNPACKED_TIMES * facts.size, _ALWAYS_UNPACKED):
        raise StudioError("The Parquet file {name} cannot be read: {reason}.", "Fetch it again; it may be cut off.", name=facts.name,
                          reason=Text("it says of itself that its {size} bytes hold {rows} rows of {unpacked} bytes together",
                                      size=facts.size, rows=total, unpacked=unpacked))

    def rows() -> Iterator[Record]:
        nonlocal done
        number = 0
        try:
            for batch in file.iter_batches(batch_size=256):
                for place in range(batch.num_rows):
                    number += 1
                    done = facts.size * number // max(1, total)
                    try:
                        yield Record(_ROW, number, batch.slice(place, 1).to_pylist()[0])
                    except unreadable as error:
                        yield Record(_ROW, number, problem=Text("it cannot be read: {reason}", reason=_first_line(error)))
        except unreadable as error:
            for missing in range(number + 1, total + 1):
                yield Record(_ROW, missing, problem=Text("it cannot be read: {reason}", reason=_first_line(error)))

    return Opened("Parquet", rows(), lambda: done)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
