"""Taking an archive in: unpacked beside the workspace, every hash compared, and only then given names.

An archive is a stranger's file. Only plain files are unpacked, under the folders that a workspace has; names that leave it, links and
devices are refused, and so is an archive that unpacks to more than there is room for, before the room is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import uuid
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from core.classroom.place import STUDENTS
from core.classroom.room import student_slug, tidy_name
from core.errors import StudioError
from core.housekeeping.archive_writing import FORMAT, MANIFEST
from core.housekeeping.placing import Placed, place_all, place_students
from core.housekeeping.trash import PARTS
from core.jobs.once import one_at_a_time
from core.migrations.steps import STEPS, VERSION
from core.workspace import Workspace, explain_full_disk, write_text

MOST_FILES = 200_000
_MOST_DEPTH = 12
_MOST_NAME_BYTES = 255
# What runs, datasets and models are called stands in the commands that pages and messages show, for people to copy into a shell.
_NAME = re.compile(r"\w[\w .-]*")
_MOST_MANIFEST_BYTES = 128 << 20
_BLOCK_BYTES = 1 << 20
# A longer name or comment is none: tarfile reads one at a time into memory.
_MOST_HEADER_BYTES = 1 << 20
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_SPARE_BYTES = 200_000_000


def import_archive(workspace: Workspace, path: Path, most_bytes: int | None = None) -> list[Placed]:
    """Take in what an archive holds; what has a name that is taken gets a new one.

    Args:
        workspace: where to.
        path: of the archive.
        most_bytes: what it may unpack to; by default what the disk has free, less a little.

    Raises:
        StudioError: it is no archive of Sweetspot, is damaged or cut off, wants out of the workspace, or does not fit.
    """
    limit = max(0, workspace.free_bytes() - _SPARE_BYTES) if most_bytes is None else most_bytes
    inbox = workspace.cache / f"import-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with one_at_a_time(workspace, "import-archive"), explain_full_disk(workspace.root):
        for left in workspace.cache.glob("import-*"):  # of an import that was killed: nobody else is here now
            shutil.rmtree(left, ignore_errors=True)
        try:
            inbox.mkdir()
            hashes = _unpack(path, inbox, limit)
            manifest = _check(inbox, hashes)
            for step in STEPS[int(manifest["workspace_version"]):]:  # an archive of an earlier version
                for place in (inbox, *(inbox / STUDENTS).glob("*")):
                    for file, text in step(Workspace(place)):
                        write_text(file, text)
            placed = place_all(workspace, inbox, manifest)
            return placed + place_students(workspace, inbox, manifest, placed)
        finally:
            shutil.rmtree(inbox, ignore_errors=True)


class _Measured:
    """The unpacked stream of an archive; refuses to be read beyond the limit."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise _too_large()
        return block


class _Header(tarfile.TarInfo):
    """A member's header; one that would fill the memory is refused before it is read."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.InvalidHeaderError("a size below zero")
        if header.type in _EXTENDED and header.size > _MOST_HEADER_BYTES:
            raise StudioError("The archive has a header of {size} bytes; it is damaged, or made to do harm.", "Nothing was taken in.",
                              size=header.size)
        return header


def _too_large() -> StudioError:
    return StudioError("The archive unpacks to more than there is room for; nothing was taken in.",
                       "Free some space, or look at where the archive comes from.")


def _unpack(path: Path, inbox: Path, limit: int) -> dict[str, str]:
    """Unpack all members below `inbox`; returns the SHA-256 of each."""
    import gzip

    hashes: dict[str, str] = {}
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            # Headers and padding come on top of the files' bytes.
            measured: Any = _Measured(stream, limit + (limit >> 3) + (64 << 20))
            with tarfile.open(fileobj=measured, mode="r|", bufsize=1 << 16, tarinfo=_Header) as archive:
                for member in archive:
                    if len(hashes) >= MOST_FILES:
                        raise StudioError("The archive holds more than {most} files; nothing was taken in.", "Export single runs instead.",
                                          most=MOST_FILES)
                    limit -= max(0, member.size)
                    if limit < 0:
                        raise _too_large()
                    hashes[member.name] = _unpack_one(archive, member, inbox)
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise
        raise StudioError("There is no file {path}.", "Give the path of an archive that `run export` or `workspace export` wrote.",
                          path=path) from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError, IsADirectoryError) as error:
        raise StudioError("{path} is no whole archive: {reason}.", "Copy it again; nothing was taken in.", path=path,
                          reason=str(error)[:200] or type(error).__name__) from error
    return hashes


def _unpack_one(archive: tarfile.TarFile, member: tarfile.TarInfo, inbox: Path) -> str:
    target = inbox / MANIFEST if member.name == MANIFEST else inbox.joinpath(*_safe_parts(member.name))
    if not member.isreg() or member.issparse():
        raise StudioError("The archive holds {name}, which is no plain file; nothing was taken in.",
                          "Links and devices are never unpacked.", name=member.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None  # it is a plain file
    try:
        with target.open("xb") as stream:
            return _copy(source, stream)
    except FileExistsError as error:
        raise StudioError("The archive holds {name} twice; nothing was taken in.", "Look at where the archive comes from.",
                          name=member.name) from error


def _copy(source: Any, target: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := source.read(_BLOCK_BYTES):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()


def _safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a member's name below the workspace.

    Raises:
        StudioError: the name leads elsewhere, or to where no workspace has anything.
    """
    parts = PurePosixPath(name).parts
    inner = parts[2:] if parts[:1] == (STUDENTS,) else parts  # a student's workspace has the same parts
    is_safe = (
        1 < len(inner) <= _MOST_DEPTH and inner[0] in PARTS and _NAME.fullmatch(inner[1]) and _NAME.fullmatch(parts[1])
        and "/".join(parts) == name and not any(
            part in ("", ".", "..") or part.startswith(".") or "\\" in part or "\0" in part or len(part.encode()) > _MOST_NAME_BYTES
            for part in parts))
    if not is_safe:
        raise StudioError("The archive wants to write {name}, outside of what a workspace holds; nothing was taken in.",
                          "Look at where the archive comes from.", name=name[:200])
    return parts


def _check(inbox: Path, hashes: dict[str, str]) -> dict[str, Any]:
    """The manifest, once everything is as it says.

    Raises:
        StudioError: a file is missing, differs or is too many, or the archive is of a newer program.
    """
    path = inbox / MANIFEST
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise ValueError
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, number, version = dict(manifest["files"]), int(manifest["format"]), int(manifest["workspace_version"])
        expected = {name: str(entry["sha256"]) for name, entry in files.items()}
        copies = {name: str(entry["same_as"]) for name, entry in files.items() if "same_as" in entry}
        students = {str(slug): str(name) for slug, name in dict(manifest.get("students") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudioError("The archive has no list of its contents: it was cut off, or Sweetspot did not write it.",
                          "Copy it again; nothing was taken in.") from error
    if number > FORMAT or version > VERSION:
        raise StudioError("The archive was written by a newer Sweetspot.", "Update this one, then take it in.")
    strangers = {PurePosixPath(name).parts[1] for name in expected if name.startswith(f"{STUDENTS}/")} - students.keys()
    for slug in sorted(strangers | {slug for slug, name in students.items() if student_slug(tidy_name(name)) != slug}):
        raise _damaged(f"{STUDENTS}/{slug}")
    unpacked = {name: digest for name, digest in hashes.items() if name != MANIFEST}
    for name, original in copies.items():
        if name in unpacked or original not in unpacked:
            raise _damaged(name)
        target = inbox.joinpath(*_safe_parts(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(inbox.joinpath(*_safe_parts(original)), target)
        hashes[name] = hashes[original]
    for name in sorted(expected.keys() | unpacked.keys()):
        if hashes.get(name) != expected.get(name):
            raise _damaged(name)
    return manifest


def _damaged(name: str) -> StudioError:
    return StudioError("{name} in the archive is not what it was when it was packed (its SHA-256 differs).",
                       "Copy it again; nothing was taken in.", name=name)
