"""Where everything lives on disk, and how files are written so that a crash leaves nothing half.

    workspace/{datasets,recipes,runs,models,jobs,cache}

`SWEETSPOT_HOME` names another place.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from core.errors import StudioError
from core.words import Text

CHECKOUT = Path(__file__).resolve().parent.parent
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy.ndarray.tofile
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Workspace:
    """The folder that holds a user's datasets, recipes, runs and models."""

    root: Path

    @classmethod
    def open(cls, path: str | Path | None = None) -> Workspace:
        """Open (and create) the workspace at `path`, else at `SWEETSPOT_HOME`, else in the checkout; an older one is brought up to date.

        One that must not be written opens all the same, to be read.

        Raises:
            StudioError: the folder cannot be created, or a newer program wrote it.
        """
        wanted = path or os.environ.get("SWEETSPOT_HOME") or CHECKOUT / "workspace"
        try:
            workspace = cls(Path(wanted).expanduser().resolve())
            for folder in (workspace.datasets, workspace.recipes, workspace.runs, workspace.models,
                           workspace.jobs, workspace.cache):
                folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError, RuntimeError) as error:  # also a zero byte, or the home of a user who does not exist
            raise StudioError(
                "The workspace {root} cannot be written: {reason}.",
                "Set SWEETSPOT_HOME to a folder you may write, or use --workspace.",
                root=wanted, reason=getattr(error, "strerror", None) or error,
            ) from error
        from core.migrations.run import bring_up_to_date  # it opens files by what stands below

        bring_up_to_date(workspace)
        return workspace

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free


def check_name(name: str, what: str) -> str:
    """Return `name` when it is safe as a folder or file name inside the workspace.

    Raises:
        StudioError: it is empty, leaves the workspace (`../x`), or has other than a-z 0-9 . _ -
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise StudioError(
            "{name!r} cannot be the name of a {what}.",
            "Use up to 80 of a-z, 0-9, dot, dash and underscore, starting with a letter or digit; for example {example}.",
            name=name, what=Text(what), example=slug(name) or "alex",
        )
    return name


def slug(text: str) -> str:
    """`text` as a name: "Alex's bot" -> "alex-s-bot". Empty when nothing usable is left."""
    plain = re.sub(r"[^a-z0-9._]+", "-", text.lower())
    return re.sub(r"\.{2,}", ".", plain).strip("-._")[:60].rstrip("-._")


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk, or a place that must not be written, into a sentence with a way out."""
    refuse_reader(path)
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise StudioError(
                "The disk is full; {path} was not written.",
                "Free some space (`sweetspot runs` lists runs you may delete) and start again; what was saved before is intact.",
                path=path,
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StudioError(
                "{path} cannot be written: {reason}.", "Set SWEETSPOT_HOME to a folder you may write, or use --workspace.",
                path=path, reason=error.strerror,
            ) from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that there is no room. safetensors has only the system's words for it, numpy how much it could write."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and bool(_SHORT_WRITE.fullmatch(str(error))))
    return any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


# Workspaces that this process only reads -> who holds them; see core.jobs.studio.
read_only: dict[Path, Text] = {}


def refuse_reader(path: Path) -> None:
    """Raises StudioError when `path` lies in a workspace that another studio holds."""
    for root, who in read_only.items():
        if path.is_relative_to(root):
            raise StudioError("This studio only reads the workspace: {who} holds it.",
                              "Work there, or end it; this studio then takes over by itself.", who=who)


def _beside(path: Path, ending: str) -> Path:
    """A hidden name for what will become `path`; no other process or thread uses it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.{ending}")


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a hidden name beside `target` to write to; it takes the target's name only if the block ends well.

    Raises:
        StudioError: the disk is full, or the place must not be written.
    """
    hidden = _beside(target, "tmp")
    with explain_full_disk(target):
        try:
            yield hidden
            os.replace(hidden, target)
        finally:
            hidden.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that readers see the old file or the new one, never half of it."""
    with whole_file(path) as hidden:
        hidden.write_text(text, encoding="utf-8")


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all lie on the disk before the first takes its name, so a full one changes none of them.

    They take their names in the order given.
    """
    with ExitStack() as stack:
        for path, text in reversed(texts.items()):  # the stack ends with what it began with
            stack.enter_context(whole_file(path)).write_text(text, encoding="utf-8")


def json_text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def jsonl_text(records: Iterable[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json_text(data))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, record: Any) -> None:
    """Append one record as one flushed line; begins a new line after a half one left by a killed writer."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with explain_full_disk(path), path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = b"\n" + line
        stream.write(line)


def write_jsonl(path: Path, records: list[Any]) -> None:
    write_text(path, jsonl_text(records))


def read_jsonl(path: Path) -> list[Any]:
    """All records of a file that may still be growing: a last line without its end is left for later."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            records.append(json.loads(line.decode("utf-8")))
        except ValueError:
            continue  # the half line, perhaps half a character, of a writer that was killed; the next writer began a new one
    return records


@contextmanager
def fill_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; it takes the target's name only if the block ends well.

    Raises:
        StudioError: the disk is full, or `target` is there already.
    """
    _sweep_partial(target)
    temporary = _beside(target, "partial")
    with explain_full_disk(target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _give_name(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _give_name(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise StudioError("{path} exists already.", "Choose another name, or delete the old one first.", path=target) from error


def _sweep_partial(target: Path) -> None:
    """Remove what killed processes left of earlier attempts at `target`; half a merged model is gigabytes."""
    for left in target.parent.glob(f".{target.name}.*.partial"):
        if has_ended(left.name.removeprefix(f".{target.name}.").partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)


def has_ended(pid: str) -> bool:
    """Whether no process of this number can be writing any more; one that its parent has not asked about yet, a zombie, has ended too."""
    try:
        return pid.isdecimal() and psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):
        return False
