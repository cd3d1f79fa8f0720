"""The datasets of a workspace: `datasets/<name>/{rows.jsonl, probes.jsonl, card.json}`, with `rejected.jsonl` after an import.

A row is `{"messages": [{"role", "content"}], "group", "lang"}`, or `{"text", "group", "lang"}` for a plain document. Beside messages may
stand `tools`, the JSON schemas of what the assistant may call, and `rejected`, the messages of an answer that was not preferred.
A probe is a question nobody trains on, asked of every checkpoint. Among the probes lie documents that were held out; nobody is asked those,
they are read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.errors import StudioError
from core.housekeeping.trash import throw_away
from core.jobs.once import one_at_a_time
from core.workspace import (
    Workspace,
    check_name,
    fill_folder,
    json_text,
    jsonl_text,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_texts,
)

IDENTITY, NEAR, GENERAL = "identity", "near", "general"
# Rows that were taken out of the training data before it began; a probe of this group carries the row's `answer`.
HELD_OUT = "held_out"


def texts_of(row: dict[str, Any]) -> list[str]:
    """What a row says, turn by turn; a document says one thing."""
    return [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]


class Card(BaseModel):
    """Where a dataset came from. `key_phrases`: what an identity answer must contain, by language."""

    name: str
    source: str
    created: float
    rows: int
    groups: dict[str, int]
    languages: list[str]
    sha256: str
    probes: int = 0
    key_phrases: dict[str, str] = {}
    made_with: dict[str, Any] = {}
    changed: float | None = None


@dataclass(frozen=True)
class Dataset:
    folder: Path
    card: Card

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """The dataset in a folder that is known to hold one."""
        return cls(folder, Card.model_validate(read_json(folder / "card.json")))

    def rows(self, groups: list[str] | None = None) -> list[dict[str, Any]]:
        """The rows, of these groups only when given.

        Raises:
            StudioError: no row is left.
        """
        rows = [row for row in read_jsonl(self.folder / "rows.jsonl") if groups is None or row.get("group") in groups]
        return self._checked(rows, groups)

    def _checked(self, rows: list[dict[str, Any]], groups: list[str] | None = None) -> list[dict[str, Any]]:
        if not rows:
            raise StudioError("The dataset {name} has no rows{of}.", "It has: {groups}.", name=self.card.name,
                              of=f" ({', '.join(groups)})" if groups else "",
                              groups=", ".join(f"{group} {count}" for group, count in self.card.groups.items()) or "-")
        return rows

    def first_rows(self, most: int) -> list[dict[str, Any]]:
        """The first rows of a dataset of any size; raises as `rows` does."""
        return self._checked(list(itertools.islice(self.each_row(), most)))

    def row(self, place: int) -> dict[str, Any]:
        """One row, from 0; raises as `rows` does when it is not there."""
        with (self.folder / "rows.jsonl").open("rb") as stream:
            return self._checked([json.loads(line) for line in itertools.islice(stream, place, place + 1) if line.endswith(b"\n")])[0]

    def spread_rows(self, most: int) -> list[tuple[int, dict[str, Any]]]:
        """At most `most` rows, evenly spaced, with their places; only those are parsed."""
        step = max(1, -(-self.card.rows // most))
        with (self.folder / "rows.jsonl").open("rb") as stream:
            return [(place, json.loads(line)) for place, line in enumerate(stream) if place % step == 0 and line.endswith(b"\n")]

    def each_row(self) -> Iterator[dict[str, Any]]:
        """The rows one by one, without holding them; a half line at the end is left out."""
        with (self.folder / "rows.jsonl").open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def probes(self) -> list[dict[str, Any]]:
        return [probe for probe in self.all_probes() if "text" not in probe]

    def held_out_documents(self) -> list[dict[str, Any]]:
        """`{"id", "group", "lang", "text"}` each."""
        return [probe for probe in self.all_probes() if "text" in probe]

    def all_probes(self) -> list[dict[str, Any]]:
        """Questions and documents, as they lie on disk."""
        return read_jsonl(self.folder / "probes.jsonl")


def save_dataset(workspace: Workspace, name: str, rows: list[dict[str, Any]], source: str, *,
                 probes: list[dict[str, Any]] | None = None, key_phrases: dict[str, str] | None = None,
                 made_with: dict[str, Any] | None = None) -> Dataset:
    """Write a dataset, whole or not at all.

    Raises:
        StudioError: the name is unusable or taken, or there are no rows.
    """
    target = workspace.datasets / check_name(name, "dataset")
    if target.exists():
        raise StudioError("A dataset called {name} exists already.", "Choose another name, or delete the old one first.", name=name)
    if not rows:
        raise StudioError("The dataset {name} would be empty.", "Give it at least one question with an answer.", name=name)
    with new_dataset(workspace, name) as folder:
        writer = RowWriter(folder)
        with writer:
            for row in rows:
                writer.write(row)
        return writer.finish(target, name, source, probes=probes, key_phrases=key_phrases, made_with=made_with)


@contextmanager
def new_dataset(workspace: Workspace, name: str) -> Iterator[Path]:
    """A temporary folder that becomes the dataset `name` if the block ends well.

    Raises:
        StudioError: the name is unusable or taken.
    """
    target = workspace.datasets / check_name(name, "dataset")
    if target.exists():
        raise StudioError("A dataset called {name} exists already.", "Choose another name, or delete the old one first.", name=name)
    with fill_folder(target) as folder:
        yield folder


class RowWriter:
    """Writes rows one by one and counts what a card says about them; used with `with`, then `finish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self.groups: dict[str, int] = {}
        self.languages: dict[str, int] = {}
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> RowWriter:
        self._stream = (self.folder / "rows.jsonl").open("wb", buffering=1 << 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, row: dict[str, Any]) -> None:
        line = _as_line(row).encode("utf-8", "replace")
        self._stream.write(line)
        self._sha256.update(line)
        self.rows += 1
        group, language = row["group"], row.get("lang", "en")
        self.groups[group] = self.groups.get(group, 0) + 1
        self.languages[language] = self.languages.get(language, 0) + 1

    def finish(self, target: Path, name: str, source: str, *, probes: list[dict[str, Any]] | None = None,
               key_phrases: dict[str, str] | None = None, made_with: dict[str, Any] | None = None) -> Dataset:
        """Write probes and card; `target` is where the folder will lie."""
        write_jsonl(self.folder / "probes.jsonl", probes or [])
        card = Card(name=name, source=source, created=time.time(), probes=len(probes or []), key_phrases=key_phrases or {},
                    made_with=made_with or {}, rows=self.rows, groups=self.groups, languages=sorted(self.languages),
                    sha256=self._sha256.hexdigest())
        write_json(self.folder / "card.json", card.model_dump())
        return Dataset(target, card)


def update_rows(workspace: Workspace, name: str, rows: list[dict[str, Any]], expected_sha256: str,
                probes: list[dict[str, Any]] | None = None) -> Dataset:
    """Replace all rows of a dataset, and its probes where some are given.

    Each file is replaced in one step: probes, rows, card. A reader between the last two sees the new rows with the old counts.

    Args:
        workspace: where the dataset lies.
        name: of the dataset.
        rows: all its rows, not only the changed ones.
        expected_sha256: the card's hash when the rows were read, so that two windows do not undo each other's work.
        probes: all its probes; None leaves those that are there.

    Raises:
        StudioError: somebody else changed the dataset meanwhile, or no row would be left.
    """
    with one_at_a_time(workspace, "datasets"):
        dataset = load_dataset(workspace, name)
        if dataset.card.sha256 != expected_sha256:
            raise StudioError("The dataset {name} was changed in another window meanwhile; nothing was saved.",
                              "Reload the page, then make your change again.", name=name)
        if not rows:
            raise StudioError("The dataset {name} would be empty.", "Give it at least one question with an answer.", name=name)
        return _replace_rows(dataset, rows, probes)


def _replace_rows(dataset: Dataset, rows: list[dict[str, Any]], probes: list[dict[str, Any]] | None = None) -> Dataset:
    text = jsonl_text(rows)
    card = dataset.card.model_copy(update={"changed": time.time(), **_counted(rows, text),
                                           **({} if probes is None else {"probes": len(probes)})})
    changed = {} if probes is None else {dataset.folder / "probes.jsonl": jsonl_text(probes)}
    # Probes first: a crash right after them leaves rows twice, and loses none.
    write_texts({**changed, dataset.folder / "rows.jsonl": text, dataset.folder / "card.json": json_text(card.model_dump())})
    return Dataset(dataset.folder, card)


def delete_dataset(workspace: Workspace, name: str) -> None:
    """Move a dataset to the trash; runs that were trained on it keep their own record of it.

    Raises:
        StudioError: there is none of this name.
    """
    throw_away(workspace, load_dataset(workspace, name).folder)


def _as_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _counted(rows: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """What a card says about its rows; `text` is their file."""
    groups: dict[str, int] = {}
    for row in rows:
        groups[row["group"]] = groups.get(row["group"], 0) + 1
    return {"rows": len(rows), "groups": groups, "languages": sorted({row.get("lang", "en") for row in rows}),
            "sha256": hashlib.sha256(text.encode()).hexdigest()}


def append_rows(workspace: Workspace, name: str, rows: list[dict[str, Any]], source: str) -> Dataset:
    """Add rows at the end of a dataset; one that does not exist yet is made of them.

    Args:
        source: where the rows come from, for the card of a new dataset.

    Raises:
        StudioError: the name is unusable, or there are no rows.
    """
    with one_at_a_time(workspace, "datasets"):
        if not (workspace.datasets / check_name(name, "dataset")).exists():
            return save_dataset(workspace, name, rows, source)
        dataset = load_dataset(workspace, name)
        return _replace_rows(dataset, read_jsonl(dataset.folder / "rows.jsonl") + rows)


def load_dataset(workspace: Workspace, name: str) -> Dataset:
    """Open a dataset by name.

    Raises:
        StudioError: there is none of this name, or its card cannot be read.
    """
    folder = workspace.datasets / check_name(name, "dataset")
    if not (folder / "card.json").exists():
        raise StudioError("There is no dataset called {name}.", "`sweetspot data list` shows what is here; "
                          "`sweetspot data persona` makes one.", name=name)
    try:
        return Dataset.open(folder)
    except ValueError as error:
        raise StudioError("The card of the dataset {name} cannot be read.", "Delete the folder {folder} and make it again.",
                          name=name, folder=folder) from error


def list_datasets(workspace: Workspace) -> list[Dataset]:
    """All readable datasets, newest first."""
    found = []
    for card in workspace.datasets.glob("*/card.json"):
        if card.parent.name.startswith("."):
            continue  # half written, or half deleted
        try:
            found.append(Dataset.open(card.parent))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda dataset: -dataset.card.created)
