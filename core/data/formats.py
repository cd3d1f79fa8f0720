"""Files of conversations -> rows, recognised by their content: JSON, JSON Lines, CSV and tab-separated text.

Every record is accounted for: imported + repaired + rejected = read, each repair and each refusal with its place and reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.conversations import convert, known_columns
from core.data.library import GENERAL, Dataset, save_dataset
from core.errors import StudioError
from core.words import Text
from core.workspace import Workspace

LARGEST_BYTES = 500_000_000
_LARGEST_CELL = 10_000_000
_NOTES_KEPT = 50  # in the card; the page shows as many
_WRAPPERS = ("data", "rows", "train", "examples", "items", "conversations", "instances")


@dataclass(frozen=True)
class Note:
    """What happened to one record: where it stands in the file, and why."""

    place: Text
    reason: Text


@dataclass
class Imported:
    """What a file gave.

    Attributes:
        file: the name it came under.
        sha256: of its bytes.
        rows: the usable rows, repaired ones included, in the file's order.
        read: how many records the file holds.
        repaired: one note per row that was changed.
        rejected: one note per record that became no row.
        layouts: layout -> number of records.
        encoding: how its bytes were read.
    """

    file: str
    sha256: str
    encoding: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    repaired: list[Note] = field(default_factory=list)
    rejected: list[Note] = field(default_factory=list)
    layouts: dict[str, int] = field(default_factory=dict)

    @property
    def imported(self) -> int:
        """Rows taken over unchanged."""
        return len(self.rows) - len(self.repaired)

    def summary(self) -> dict[str, Any]:
        """Counts and the first notes, for the card and for `--json`."""
        notes = {kind: [{"place": note.place.to_json(), "reason": note.reason.to_json()} for note in found[:_NOTES_KEPT]]
                 for kind, found in (("repairs", self.repaired), ("refusals", self.rejected))}
        return {"file": self.file, "sha256": self.sha256, "encoding": self.encoding, "layouts": self.layouts, "read": self.read,
                "imported": self.imported, "repaired": len(self.repaired), "rejected": len(self.rejected), **notes}


def read_path(path: str | Path, group: str = GENERAL) -> Imported:
    """Read a file on this machine.

    Raises:
        StudioError: it is not there, cannot be read, is too large, or holds no conversations.
    """
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            raise StudioError("{path} is a folder.", "Name one file: JSON, JSON Lines or CSV.", path=place)
        size = place.stat().st_size
        if size > LARGEST_BYTES:
            raise StudioError("{path} has {size} MB; {limit} MB are allowed.", "Cut it into smaller files.",
                              path=place, size=round(size / 1e6), limit=round(LARGEST_BYTES / 1e6))
        return read_bytes(place.read_bytes(), place.name, group)
    except OSError as error:
        raise StudioError("The file {path} cannot be read: {reason}.", "Check its name, and that you may read it.",
                          path=place, reason=error.strerror or type(error).__name__) from error


def read_bytes(data: bytes, name: str, group: str = GENERAL) -> Imported:
    """Read the bytes of a file.

    Args:
        data: the file.
        name: what it is called, for messages and the card.
        group: the group of rows that name none themselves.

    Raises:
        StudioError: it is not text, or holds nothing that is known.
    """
    text, encoding = _decode(data, name)
    if not text.strip():
        raise StudioError("The file {name} is empty.", "Choose a file with conversations: JSON, JSON Lines or CSV.", name=name)
    found = Imported(name, hashlib.sha256(data).hexdigest(), encoding)
    for place, record in _records(text, name):
        found.read += 1
        if isinstance(record, Text):
            found.rejected.append(Note(place, record))
            continue
        done = convert(record)
        if done.layout:
            found.layouts[done.layout] = found.layouts.get(done.layout, 0) + 1
        if done.reason:
            found.rejected.append(Note(place, done.reason))
            continue
        found.rows.append(_row(done.messages, record, group))
        if done.repairs:
            found.repaired.append(Note(place, _joined(done.repairs)))
    return found


def import_dataset(workspace: Workspace, name: str, found: Imported) -> Dataset:
    """Save what a file gave as a dataset.

    Raises:
        StudioError: no row is usable, or the name is taken or unusable.
    """
    if not found.rows:
        first = found.rejected[0] if found.rejected else Note(Text("the file"), Text("it is empty"))
        raise StudioError("None of the {read} records of {file} can be used. {place}: {reason}.",
                          "A record needs a question and an answer; `sweetspot data import --help` shows the layouts.",
                          read=found.read, file=found.file, place=first.place, reason=first.reason)
    return save_dataset(workspace, name, found.rows, "import", made_with=found.summary())


def _decode(data: bytes, name: str) -> tuple[str, str]:
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    marked = [encoding for mark, encoding in marks if data.startswith(mark)]
    for encoding in marked or ["utf-8", "gb18030"]:  # Chinese Excel saves CSV as GB18030
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\x00" not in text[:4096]:
            return text, encoding.removesuffix("-sig")
    raise StudioError("The file {name} is not text.", "Save it as JSON, JSON Lines or CSV in UTF-8.", name=name)


def _records(text: str, name: str) -> Iterator[tuple[Text, Any]]:
    """(place, record) of each record; a Text in place of a record says why it could not be read."""
    start = text.lstrip()[0]
    if start == "[" and (entries := _whole_array(text)) is not None:
        yield from _numbered(entries)
    elif start in "[{":
        if start == "{" and isinstance(whole := _parsed(text), dict):
            yield from _numbered(_unwrapped(whole))
        elif _is_json_lines(text, start):
            yield from _json_lines(text)
        else:
            yield from _as_far_as_it_goes(text)
    else:
        yield from _table(text, name)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_json_lines(text: str, start: str) -> bool:
    """Whether some early line is a record by itself; the first may be the broken one."""
    lines = text.lstrip().split("\n", 20)[:20]
    return any(isinstance(_parsed(line), dict if start == "{" else list) for line in lines)


def _whole_array(text: str) -> list[Any] | None:
    """The entries, unless it is JSON Lines whose first line is a list, or broken."""
    whole = _parsed(text)
    if not isinstance(whole, list):
        return None
    is_one_conversation = bool(whole) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in whole)
    return [whole] if is_one_conversation else whole


def _unwrapped(whole: dict[str, Any]) -> list[Any]:
    """The list inside `{"data": [...]}`; else the object itself is the only record."""
    for key in _WRAPPERS:
        inner = whole.get(key)
        if isinstance(inner, list) and inner and all(isinstance(entry, dict) for entry in inner) and "from" not in inner[0]:
            return inner
    return [whole]


def _numbered(entries: list[Any]) -> Iterator[tuple[Text, Any]]:
    for number, entry in enumerate(entries, 1):
        yield Text("entry {number}", number=number), entry


def _json_lines(text: str) -> Iterator[tuple[Text, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        record = _parsed(line)
        yield Text("line {number}", number=number), Text("it is not complete JSON") if record is None else record


def _as_far_as_it_goes(text: str) -> Iterator[tuple[Text, Any]]:
    """Entries of a list that is broken somewhere: those before the break, then one refusal for the rest."""
    decoder, number, position = json.JSONDecoder(), 0, text.index("[") + 1 if text.lstrip().startswith("[") else 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        number += 1
        try:
            record, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            line = text.count("\n", 0, position) + 1
            rest = text[position:].strip()
            if rest and rest != "]":
                yield Text("entry {number}, from line {line}", number=number, line=line), Text(
                    "the file is broken here; nothing after it was read")
            elif not rest:
                yield Text("end of the file"), Text("the list is not closed; the end may be missing")
            return
        yield Text("entry {number}", number=number), record
        position = end


def _table(text: str, name: str) -> Iterator[tuple[Text, Any]]:
    csv.field_size_limit(_LARGEST_CELL)
    header = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t|", key=header.count)
    reader = csv.DictReader(io.StringIO(text.replace("\x00", ""), newline=""), delimiter=delimiter)
    columns = [column for column in reader.fieldnames or [] if column]
    if not known_columns(columns):
        raise StudioError("No column of {name} is known; it begins with: {columns}.",
                          "Name the columns question and answer, or instruction and output.",
                          name=name, columns=", ".join(columns)[:120] or "-")
    try:
        for record in reader:
            place = Text("line {number}", number=reader.line_num)
            yield place, Text("it has more cells than there are columns") if None in record else record
    except csv.Error:
        yield Text("line {number}", number=reader.line_num), Text("the table is broken here; nothing after it was read")


def _row(messages: list[dict[str, Any]], record: Any, group: str) -> dict[str, Any]:
    own = record if isinstance(record, dict) else {}
    named = own.get("group")
    language = own.get("lang")
    said = " ".join(message["content"] for message in messages)
    return {"messages": messages, "group": named if isinstance(named, str) and named.strip() else group,
            "lang": language if isinstance(language, str) and language else language_of(said)}


def language_of(text: str) -> str:
    """`zh` when a fifth of the letters are Chinese characters, else `en`."""
    letters = [char for char in text if char.isalpha()]
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in letters)
    return "zh" if letters and chinese / len(letters) > 0.2 else "en"


def _joined(reasons: list[Text]) -> Text:
    unique = list({str(reason): reason for reason in reasons}.values())
    joined = unique[0]
    for reason in unique[1:]:
        joined = Text("{first}; {second}", first=joined, second=reason)
    return joined


def export_rows(rows: list[dict[str, Any]], path: str | Path) -> Path:
    """Write rows to a new file: `.jsonl` or `.json` with messages, group and language, `.csv` with question and answer.

    Raises:
        StudioError: the file exists, its ending is another one, or a conversation has no place in a table.
    """
    target = Path(path).expanduser()
    if target.exists():
        raise StudioError("The file {path} exists already.", "Name a new file; nothing is overwritten.", path=target)
    text = _exported(rows, target)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StudioError("The file {path} cannot be written: {reason}.", "Name a file in a folder you may write to.",
                          path=target, reason=error.strerror or type(error).__name__) from error
    return target


def _exported(rows: list[dict[str, Any]], target: Path) -> str:
    ending = target.suffix.lower()
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    if ending != ".csv":
        raise StudioError("The ending of {path} is not known.", "Use .jsonl, .json or .csv.", path=target)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["question", "answer", "group", "lang"])
    for number, row in enumerate(rows, 1):
        roles = [message["role"] for message in row["messages"]]
        if roles != ["user", "assistant"]:
            raise StudioError("Row {number} is more than one question and one answer; a table has no place for it.",
                              "Export to .jsonl instead.", number=number)
        writer.writerow([*(message["content"] for message in row["messages"]), row.get("group", GENERAL), row.get("lang", "en")])
    return table.getvalue()
