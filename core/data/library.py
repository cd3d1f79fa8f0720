"""The datasets of a workspace: `datasets/<name>/{rows.jsonl, probes.jsonl, card.json}`.

A row is `{"messages": [{"role", "content"}], "group", "lang"}`. A probe is a question nobody trains on, asked of every checkpoint.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.errors import StudioError
from core.workspace import Workspace, check_name, fill_folder, read_json, read_jsonl, write_json, write_jsonl

IDENTITY, NEAR, GENERAL = "identity", "near", "general"


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


@dataclass(frozen=True)
class Dataset:
    folder: Path
    card: Card

    def rows(self, groups: list[str] | None = None) -> list[dict[str, Any]]:
        """The rows, of these groups only when given.

        Raises:
            StudioError: no row is left.
        """
        rows = [row for row in read_jsonl(self.folder / "rows.jsonl") if groups is None or row.get("group") in groups]
        if not rows:
            raise StudioError("The dataset {name} has no rows{of}.", "It has: {groups}.", name=self.card.name,
                              of=f" ({', '.join(groups)})" if groups else "",
                              groups=", ".join(f"{group} {count}" for group, count in self.card.groups.items()) or "-")
        return rows

    def probes(self) -> list[dict[str, Any]]:
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
    groups: dict[str, int] = {}
    for row in rows:
        groups[row["group"]] = groups.get(row["group"], 0) + 1
    with fill_folder(target) as folder:
        write_jsonl(folder / "rows.jsonl", rows)
        write_jsonl(folder / "probes.jsonl", probes or [])
        card = Card(name=name, source=source, created=time.time(), rows=len(rows), groups=groups,
                    languages=sorted({row.get("lang", "en") for row in rows}),
                    sha256=hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest(), probes=len(probes or []),
                    key_phrases=key_phrases or {}, made_with=made_with or {})
        write_json(folder / "card.json", card.model_dump())
    return Dataset(target, card)


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
        return Dataset(folder, Card.model_validate(read_json(folder / "card.json")))
    except ValueError as error:
        raise StudioError("The card of the dataset {name} cannot be read.", "Delete the folder {folder} and make it again.",
                          name=name, folder=folder) from error


def list_datasets(workspace: Workspace) -> list[Dataset]:
    """All readable datasets, newest first."""
    found = []
    for card in workspace.datasets.glob("*/card.json"):
        try:
            found.append(Dataset(card.parent, Card.model_validate(read_json(card))))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda dataset: -dataset.card.created)
