"""Giving what an archive holds its place in a workspace: a free name for each, and every mention of an old name or path changed with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.classroom.place import STUDENTS
from core.classroom.room import Classroom
from core.data.library import Dataset
from core.data.store import free_name
from core.errors import StudioError
from core.recipe.files import build_recipe, dump_recipe, load_recipe
from core.workspace import Workspace, read_json, write_json, write_text


@dataclass(frozen=True)
class Placed:
    """One thing taken in: `part` as in the workspace, its name in the archive and here. `is_known`: it was here already, byte by byte."""

    part: str
    name: str
    here: str
    is_known: bool = False


def place_all(workspace: Workspace, inbox: Path, manifest: dict[str, Any], shared: Sequence[Placed] = ()) -> list[Placed]:
    """Move everything from `inbox` to its place; the things that others mention come first. `shared`: the class's models, for a student."""
    placed: list[Placed] = []
    for part in ("models", "datasets", "recipes", "runs", "jobs"):
        for thing in sorted((inbox / part).glob("*")):
            placed.append(_choose(workspace, part, thing, manifest))
    names = {(entry.part, entry.name): entry.here for entry in (*shared, *placed)}
    for entry in placed:
        if not entry.is_known:
            _adapt(workspace, inbox / entry.part / entry.name, entry, names, manifest)
    for entry in placed:
        if not entry.is_known:
            os.replace(inbox / entry.part / entry.name, workspace.root / entry.part / entry.here)
    return placed


def place_students(workspace: Workspace, inbox: Path, manifest: dict[str, Any], placed: Sequence[Placed]) -> list[Placed]:
    """The same for every student of a class in the archive; who is not in this class joins it, and gets a code from the teacher.

    Args:
        workspace: the class's; it becomes one.
        inbox: what was unpacked.
        manifest: of the archive.
        placed: what the class itself got, by the names it has here.
    """
    students: dict[str, str] = manifest.get("students") or {}
    if not students:
        return []
    room, models, found = Classroom.open(workspace), [entry for entry in placed if entry.part == "models"], []
    for slug, name in sorted(students.items()):
        if room.student(slug) is None:
            room.join(name)
        for entry in place_all(room.workspace_of(slug), inbox / STUDENTS / slug, manifest, models):
            found.append(replace(entry, part=f"{STUDENTS}/{slug}/{entry.part}"))
    return found


def _choose(workspace: Workspace, part: str, thing: Path, manifest: dict[str, Any]) -> Placed:
    target = workspace.root / part / thing.name
    if not target.exists():
        return Placed(part, thing.name, thing.name)
    if _is_same(part, thing, target, manifest):
        return Placed(part, thing.name, thing.name, is_known=True)
    if part == "recipes":
        number = 2
        while (workspace.recipes / f"{thing.stem}-{number}.yaml").exists():
            number += 1
        return Placed(part, thing.name, f"{thing.stem}-{number}.yaml")
    return Placed(part, thing.name, free_name(target.parent, thing.name))


def _is_same(part: str, thing: Path, target: Path, manifest: dict[str, Any]) -> bool:
    """Whether what has this name here already is the very same."""
    if part == "recipes":
        return thing.read_bytes() == target.read_bytes()
    if part == "datasets":
        try:
            return Dataset.open(thing).card.sha256 == Dataset.open(target).card.sha256
        except (OSError, ValueError):
            return False
    if part == "models":
        paths = [path for path in thing.rglob("*") if path.is_file()]
        return all(_is_same_file(path, target / path.relative_to(thing)) for path in paths)
    return False


def _is_same_file(one: Path, other: Path) -> bool:
    """Compared in blocks: weights may be larger than the memory."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(1 << 22):
            if block != second.read(1 << 22):
                return False
    return True


def _adapt(workspace: Workspace, thing: Path, entry: Placed, names: dict[tuple[str, str], str], manifest: dict[str, Any]) -> None:
    """Change in one thing, still in the inbox, what it says about others."""
    if entry.part == "runs":
        _adapt_recipe(thing / "recipe.yaml", names, manifest.get("base") or {})
        _adapt_record(thing / "dataset.json", names)
    elif entry.part == "recipes":
        _adapt_recipe(thing, names, {})
    elif entry.part == "datasets" and entry.here != entry.name:
        card = read_json(thing / "card.json")
        write_json(thing / "card.json", {**card, "name": entry.here})
    elif entry.part in ("jobs", "models"):
        for name in ("spec.json", "lesson.json", "merge.json"):
            if (thing / name).exists():
                _adapt_words(workspace, thing / name, names)


def _adapt_recipe(path: Path, names: dict[tuple[str, str], str], base: dict[str, Any]) -> None:
    """Datasets and the base model by their names here; a base from anywhere on the old machine travelled as a model of this name."""
    try:
        recipe = load_recipe(path)
    except (OSError, StudioError):
        return  # it was damaged before it travelled
    data = recipe.model_dump()
    for source in data["data"]["sources"]:
        source["dataset"] = names.get(("datasets", source["dataset"]), source["dataset"])
    if data["probes"]["dataset"]:
        data["probes"]["dataset"] = names.get(("datasets", data["probes"]["dataset"]), data["probes"]["dataset"])
    source = data["model"]["source"]
    travelled = base.get("model") if base.get("source") == source else source
    data["model"]["source"] = names.get(("models", str(travelled)), source)
    adapted = build_recipe(data)
    if adapted != recipe:
        write_text(path, dump_recipe(adapted))


def _adapt_record(path: Path, names: dict[tuple[str, str], str]) -> None:
    try:
        record = read_json(path)
        for source in record["sources"]:
            source["dataset"] = names.get(("datasets", source["dataset"]), source["dataset"])
        write_json(path, record)
    except (OSError, ValueError, KeyError, TypeError):
        return


def _adapt_words(workspace: Workspace, path: Path, names: dict[tuple[str, str], str]) -> None:
    """Runs, models and datasets by their names here; folders of the old workspace become those of this one."""
    renamed = {old: new for (part, old), new in names.items() if part != "recipes" and old != new}

    def adapt(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: adapt(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [adapt(inner) for inner in value]
        if not isinstance(value, str):
            return value
        head, mark, rest = value.partition("@")
        if value.startswith("/") and Path(value).parent.name in ("jobs", "runs", "models") and len(Path(value).parts) > 2:
            old = Path(value)
            return str(workspace.root / old.parent.name / names.get((old.parent.name, old.name), old.name))
        return renamed.get(head, head) + mark + rest

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    adapted = adapt(data)
    if adapted != data:
        write_json(path, adapted)
