"""A run or a whole workspace as one archive that another machine takes in: `*.tar`, or `*.tar.gz`.

Members are plain files only, named as in the workspace; the last one, `manifest.json`, has the SHA-256 of each, so an archive that was
cut off has no manifest and is refused. A file with several names is stored once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.classroom.place import STUDENTS
from core.classroom.room import Classroom
from core.errors import StudioError
from core.housekeeping.trash import PARTS
from core.jobs.active import active_jobs
from core.migrations.steps import VERSION
from core.models.embedded import EMBEDDED_NAME
from core.runs import Run
from core.workspace import Workspace, explain_full_disk

FORMAT = 1
MANIFEST = "manifest.json"


def export_run(workspace: Workspace, run: Run, target: Path, with_base: bool = False) -> dict[str, Any]:
    """Write a run with the datasets it learned from, and on request its base model, to one archive; returns its manifest.

    Raises:
        StudioError: the run is at work, the target exists, or the disk is full.
    """
    if run.state().is_active or run.has_worker():
        raise StudioError("The run {run} is still running.", "Stop it first with `sweetspot run stop {run}`.", run=run.id)
    recipe = run.recipe()
    names = dict.fromkeys([*(source.dataset for source in recipe.data.sources), recipe.probe_dataset])
    things = [run.folder, *(workspace.datasets / name for name in names if name and (workspace.datasets / name).is_dir())]
    base = {"source": recipe.model.source, "model": None}
    folder = _local_base(workspace, recipe.model.source)
    if with_base and folder is not None:
        base["model"] = folder.name
        things.append(folder)
    return _write(workspace, target, things, {"kind": "run", "run": run.id, "base": base})


def export_workspace(workspace: Workspace, target: Path) -> dict[str, Any]:
    """Write everything but caches, trash and the embedded model, which any installation makes itself; returns the manifest.

    Of a class its students' workspaces go along, under `students/<name>/`; their codes and the password do not.

    Raises:
        StudioError: a job is at work, the target exists, or the disk is full.
    """
    students = {student.slug: student.name for student in Classroom(workspace).students()}
    places = [workspace, *(Workspace(workspace.root / STUDENTS / slug) for slug in students)]
    active = [job for place in places for job, _ in active_jobs(place)]
    if active:
        raise StudioError("The job {job} is at work, so the workspace changes while it is copied.",
                          "Wait for its end, or stop it with `sweetspot run stop {job}`.", job=active[0].id)
    things = [path for place in places for part in PARTS for path in sorted((place.root / part).iterdir())
              if not path.name.startswith(".") and path.name != EMBEDDED_NAME
              and (place == workspace or not path.is_symlink())]  # a student's links lead to the class's own models
    return _write(workspace, target, things, {"kind": "workspace", "students": students})


def _local_base(workspace: Workspace, source: str) -> Path | None:
    """The folder of a base model that the other machine may not have: one of the workspace, or any other on this machine."""
    if source in ("embedded", EMBEDDED_NAME):
        return None
    folder = workspace.models / source if "/" not in source else Path(source).expanduser()
    return folder if folder.is_dir() else None


def _write(workspace: Workspace, target: Path, things: list[Path], about: dict[str, Any]) -> dict[str, Any]:
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz"}.get(target.suffix)
    if mode is None:
        raise StudioError("{path} has no ending of an archive.", "Call it NAME.tar, or NAME.tar.gz to have it packed.", path=target)
    if target.exists():
        raise StudioError("{path} exists already.", "Choose another name, or delete the old one first.", path=target)
    manifest: dict[str, Any] = {"format": FORMAT, "workspace_version": VERSION, "created": time.time(), **about, "files": {},
                                "left_out": []}
    hidden = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    with explain_full_disk(target):
        try:
            options = {"compresslevel": 1} if mode == "w:gz" else {}  # weights hardly shrink; more effort gains nothing
            with tarfile.open(hidden, mode, format=tarfile.PAX_FORMAT, **options) as archive:
                _add_all(archive, workspace, things, manifest)
            os.replace(hidden, target)
        except FileNotFoundError as error:
            raise StudioError("There is no folder {path}.", "Make it first, or write to another place.", path=target.parent) from error
        finally:
            hidden.unlink(missing_ok=True)
    return manifest


def _add_all(archive: tarfile.TarFile, workspace: Workspace, things: list[Path], manifest: dict[str, Any]) -> None:
    known: dict[tuple[int, int], str] = {}
    for thing in things:
        inside = thing.is_relative_to(workspace.root)
        for path in _files(thing):
            name = path.relative_to(workspace.root).as_posix() if inside else f"models/{thing.name}/{path.relative_to(thing).as_posix()}"
            if path.is_symlink() or not path.is_file():
                manifest["left_out"].append(name)
                continue
            state = path.stat()
            inode = (state.st_dev, state.st_ino)
            if state.st_nlink > 1 and inode in known:
                manifest["files"][name] = {**manifest["files"][known[inode]], "same_as": known[inode]}
                continue
            known[inode] = name
            manifest["files"][name] = _add_file(archive, path, name, state.st_size)
    _add_bytes(archive, MANIFEST, json.dumps(manifest, ensure_ascii=False).encode())


def _files(thing: Path) -> Iterator[Path]:
    """Files below `thing` that are whole; locks and half-written files stay behind."""
    if thing.is_symlink() or thing.is_file():
        yield thing
        return
    for path in sorted(thing.iterdir()):
        if path.name.startswith(".") or path.suffix == ".lock" or path.name in ("launched.json", "stop"):
            continue
        yield from _files(path)


class _Hashing(io.RawIOBase):
    """Reads a file for the archive and hashes what it read."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self.digest.update(block)
        return block


def _add_file(archive: tarfile.TarFile, path: Path, name: str, size: int) -> dict[str, Any]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    with path.open("rb") as stream:
        hashing = _Hashing(stream)
        archive.addfile(entry, hashing)
    return {"sha256": hashing.digest.hexdigest(), "bytes": size}


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))
