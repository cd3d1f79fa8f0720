"""Importing: records of a file or of a set from the hub become the rows of a dataset, one by one and with none lost.

Every record is accounted for: imported + repaired + rejected = read. Rows go straight to the folder of the dataset; a record that
could not be used goes to `rejected.jsonl` beside them, with its place, the reason and the record itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.data.conversations import Body, Converted, convert
from core.data.files import FileFacts, look_at
from core.data.languages import language_of
from core.data.layouts import check_columns, reader_of
from core.data.library import GENERAL, IDENTITY, NEAR, Dataset, RowWriter, new_dataset
from core.data.records import Record, open_records
from core.errors import StudioError
from core.words import Text
from core.workspace import Workspace

NOTES_KEPT = 50  # in the card; the page shows as many
REJECTED_FILE = "rejected.jsonl"
_PLACE_KEPT = 200  # characters of an own group or language
Row = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        layout: name of a layout, or None to recognise each record.
        columns: our field -> column of the file; wins over every recognition.
        group: of rows that name none themselves.
    """

    layout: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    group: str = GENERAL

    def check(self) -> None:
        """Raises StudioError when the layout or a field does not exist."""
        reader_of(self.layout)
        check_columns(self.columns)


@dataclass(frozen=True)
class Note:
    """What happened to one record: where it stands, and why."""

    place: Text
    reason: Text


@dataclass
class Imported:
    """What became of the records.

    Attributes:
        file: the name they came under.
        sha256: of the file's bytes; empty where there is no file.
        encoding: how its bytes were read.
        form: JSON, JSON Lines, table, Parquet, YAML, plain text or hub.
        read: how many records there were.
        rows: how many became rows, repaired ones included.
        repaired, rejected: how many were changed, or became no row.
        layouts: layout -> number of records.
        repairs, refusals: the first notes of each.
    """

    file: str
    sha256: str = ""
    encoding: str = "utf-8"
    form: str = ""
    read: int = 0
    rows: int = 0
    repaired: int = 0
    rejected: int = 0
    layouts: dict[str, int] = field(default_factory=dict)
    repairs: list[Note] = field(default_factory=list)
    refusals: list[Note] = field(default_factory=list)

    @property
    def imported(self) -> int:
        """Rows taken over unchanged."""
        return self.rows - self.repaired

    def summary(self) -> dict[str, Any]:
        """Counts and the first notes, for the card and for `--json`."""
        notes = {kind: [{"place": note.place.to_json(), "reason": note.reason.to_json()} for note in found]
                 for kind, found in (("repairs", self.repairs), ("refusals", self.refusals))}
        return {"file": self.file, "sha256": self.sha256, "form": self.form, "encoding": self.encoding, "layouts": self.layouts,
                "read": self.read, "imported": self.imported, "repaired": self.repaired, "rejected": self.rejected, **notes}


def rows_of(records: Iterator[Record], reading: Reading, found: Imported,
            refuse: Callable[[Record, Text], None] | None = None) -> Iterator[Row]:
    """The rows of records, counted in `found`; `refuse` is told of each record that becomes no row."""
    read = None if reading.columns and not reading.layout else reader_of(reading.layout)
    for record in records:
        found.read += 1
        if record.problem is None:
            done = convert(record.value, read, reading.columns)
        else:
            done = Converted(reason=record.problem)
        if done.layout:
            found.layouts[done.layout] = found.layouts.get(done.layout, 0) + 1
        if done.reason is not None:
            found.rejected += 1
            if len(found.refusals) < NOTES_KEPT:
                found.refusals.append(Note(record.place, done.reason))
            if refuse is not None:
                refuse(record, done.reason)
            continue
        found.rows += 1
        repairs = [*done.repairs, record.note] if record.note is not None else done.repairs
        if repairs:
            found.repaired += 1
            if len(found.repairs) < NOTES_KEPT:
                found.repairs.append(Note(record.place, _all_of(repairs)))
        yield _row(done.body, record.value, reading.group)


def _row(body: Body, record: Any, group: str) -> Row:
    own = record if isinstance(record, dict) else {}
    named, language = own.get("group"), own.get("lang")
    group = named[:_PLACE_KEPT] if isinstance(named, str) and named.strip() else group
    if "text" in body and group in (IDENTITY, NEAR):  # those are questions with answers; a document is neither
        group = GENERAL
    return {**body, "group": group,
            "lang": language[:_PLACE_KEPT] if isinstance(language, str) and language.strip() else language_of(body)}


def _all_of(reasons: list[Text]) -> Text:
    unique = list({str(reason): reason for reason in reasons}.values())
    joined = unique[0]
    for reason in unique[1:]:
        joined = Text("{first}; {second}", first=joined, second=reason)
    return joined


def preview(path: str | Path, reading: Reading, name: str | None = None, most: int = 200) -> tuple[Imported, list[Row]]:
    """What the first records of a file become: counts of those, and their rows. Nothing is written.

    Raises:
        StudioError: it is no file of rows, or the reading names what does not exist.
    """
    reading.check()
    facts = look_at(path, name, whole=False)
    opened = open_records(facts, bool(reading.columns or reading.layout))
    found = Imported(facts.name, "", facts.encoding, opened.form)
    rows = []
    for row in rows_of(opened.records, reading, found):
        rows.append(row)
        if found.read >= most:
            break
    return found, rows


@dataclass
class Importing:
    """Records on their way into a dataset.

    Attributes:
        found: the counts so far.
        records: what is read.
        position: how far the reading has come, of `size`.
        size: bytes of the file, or records of a set from the hub; 0 when unknown.
    """

    found: Imported
    records: Iterator[Record]
    position: Callable[[], int]
    size: int

    @classmethod
    def of_file(cls, path: str | Path, reading: Reading, name: str | None = None) -> Importing:
        """Begin with a file of this machine.

        Raises:
            StudioError: see `preview`.
        """
        reading.check()
        facts: FileFacts = look_at(path, name)
        opened = open_records(facts, bool(reading.columns or reading.layout))
        found = Imported(facts.name, facts.sha256, facts.encoding.removesuffix("-sig"), opened.form)
        return cls(found, opened.records, opened.position, facts.size)


class Stopped(Exception):
    """Somebody asked for the end; nothing is kept."""


_REPORT_ROWS = 2000


def import_rows(workspace: Workspace, name: str, importing: Importing, reading: Reading,
                report: Callable[[int, int], bool] = lambda done, total: True, keep_refused: Path | None = None,
                job: str | None = None) -> Dataset:
    """Write what is read as a new dataset, whole or not at all, in memory that does not grow with it.

    Args:
        workspace: where it shall lie.
        name: of the dataset.
        importing: what to read.
        reading: how to read it.
        report: told from time to time how far it is; False ends the import.
        keep_refused: a file for the refused records when no record can be used, and so no dataset holds them.
        job: which job does it; its card says so, and a job that is killed after this finds its work done.

    Raises:
        StudioError: no record is usable, or the name is taken or unusable.
        Stopped: `report` said so.
    """
    found = importing.found
    with new_dataset(workspace, name) as folder:
        writer = RowWriter(folder)
        with writer, (folder / REJECTED_FILE).open("w", encoding="utf-8", errors="backslashreplace") as refused:
            for row in rows_of(_reported(importing, report), reading, found, partial(_write_refused, refused)):
                writer.write(row)
        if not found.rows:
            if keep_refused is not None:
                (folder / REJECTED_FILE).replace(keep_refused)
            raise _nothing_usable(found)
        if not found.rejected:
            (folder / REJECTED_FILE).unlink()
        return writer.finish(workspace.datasets / name, name, "import", made_with={
            **found.summary(), "layout": reading.layout, "columns": reading.columns, **({"job": job} if job else {})})


def _reported(importing: Importing, report: Callable[[int, int], bool]) -> Iterator[Record]:
    for number, record in enumerate(importing.records):
        if number % _REPORT_ROWS == 0 and not report(importing.position(), importing.size):
            raise Stopped
        yield record
    report(importing.position(), importing.size)


def _write_refused(stream: Any, record: Record, reason: Text) -> None:
    kept = record.raw if record.value is None else record.value
    line = json.dumps({"place": str(record.place), "reason": str(reason), "record": kept}, ensure_ascii=False, default=str)
    stream.write(line + "\n")


def _nothing_usable(found: Imported) -> StudioError:
    first = found.refusals[0] if found.refusals else Note(Text("the file"), Text("it is empty"))
    return StudioError("None of the {read} records of {file} can be used. {place}: {reason}.",
                       "Name the layout with --layout, or the columns with --column; `sweetspot data import --help` shows both.",
                       read=found.read, file=found.file, place=first.place, reason=first.reason)
