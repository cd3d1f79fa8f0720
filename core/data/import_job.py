"""Imports as jobs: a file, an upload or a set of the hub becomes a dataset in a process of its own."""

from __future__ import annotations

import itertools
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from core.data.files import look_at
from core.data.hub import hub_records, is_hub_source
from core.data.importing import REJECTED_FILE, Imported, Importing, Reading, Stopped, import_rows
from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.jobs.worker import Recorder
from core.roots import check_source
from core.words import Text
from core.workspace import Workspace, check_name, explain_full_disk

_UPLOAD_SECONDS = 86_400.0
_COUNTS = ("read", "imported", "repaired", "rejected")

def start_import(workspace: Workspace, source: str, name: str, reading: Reading | None = None, *, shown_name: str | None = None,
                 subset: str | None = None, split: str | None = None, is_upload: bool = False) -> Job:
    """Start the job that imports `source` as the dataset `name`.

    Args:
        workspace: where the dataset shall lie.
        source: a file, a folder of data files, or `owner/name` on the hub.
        name: of the dataset.
        reading: how its records are read; None recognises each.
        shown_name: what the file is called; None takes its own name.
        subset, split: of a set of the hub.
        is_upload: the file was copied here for this import and is deleted at its end.

    Raises:
        StudioError: the name is unusable or taken, the layout or a column does not exist, or the file is not there or no file of rows.
    """
    reading = reading or Reading()
    reading.check()
    if (workspace.datasets / check_name(name, "dataset")).exists():
        raise StudioError("A dataset called {name} exists already.", "Choose another name, or delete the old one first.", name=name)
    check_source(workspace, source)
    is_set = is_hub_source(source)
    if not is_set:
        look_at(source, shown_name, whole=False)  # what its beginning tells need not wait for the job
    place = source if is_set and not Path(source).expanduser().is_dir() else str(Path(source).expanduser().resolve())
    job = create_job(workspace.jobs / new_job_id("import", name), "import", {
        "source": place, "is_set": is_set, "dataset": name, "shown_name": shown_name, "subset": subset, "split": split,
        "is_upload": is_upload, "reading": {"layout": reading.layout, "columns": reading.columns, "group": reading.group}})
    start_job(job)
    return job


def import_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Work of an `import` job."""
    spec = job.spec()
    made = _made_before(workspace, spec["dataset"], job)
    if made is not None:
        return made
    reading, shown = Reading(**spec["reading"]), spec["shown_name"] or Path(spec["source"]).name
    recorder.progress(0, 0, Text("looking at {name}", name=shown))

    def report(done: int, total: int) -> bool:
        recorder.progress(done, total, Text("importing {name}", name=shown))
        return not recorder.stop_requested()

    try:
        if spec["is_set"]:
            importing = _of_set(spec, reading)
        else:
            importing = Importing.of_file(spec["source"], reading, spec["shown_name"])
        dataset = import_rows(workspace, spec["dataset"], importing, reading, report, job.folder / REJECTED_FILE, job.id)
    except Stopped:
        return {}
    finally:
        if spec["is_upload"]:
            Path(spec["source"]).unlink(missing_ok=True)
    return {"dataset": dataset.card.name, **{key: getattr(importing.found, key) for key in _COUNTS}}


def _made_before(workspace: Workspace, name: str, job: Job) -> dict[str, Any] | None:
    """The result of this very job when it was killed between giving the dataset its name and saying that it had ended."""
    try:
        card = load_dataset(workspace, name).card
    except StudioError:
        return None
    if card.made_with.get("job") != job.id:
        return None
    return {"dataset": name, **{key: card.made_with.get(key, 0) for key in _COUNTS}, "imported": card.rows}


def _of_set(spec: dict[str, Any], reading: Reading) -> Importing:
    reading.check()
    records, size = hub_records(spec["source"], spec["subset"], spec["split"])
    done = 0

    def counted() -> Iterator[Any]:
        nonlocal done
        for record in records:
            done = record.number
            yield record

    return Importing(Imported(spec["source"] if "/" in spec["source"] else Path(spec["source"]).name, form="hub"), counted(),
                     lambda: done, size)


def keep_upload(workspace: Workspace, stream: BinaryIO, name: str) -> Path:
    """Copy what was uploaded into the workspace's cache, piece by piece, for the job to read; old copies nobody imported go."""
    folder = workspace.cache / "uploads"
    path = folder / f"{uuid.uuid4().hex[:12]}{Path(name).suffix[:10]}"
    with explain_full_disk(path):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if time.time() - left.stat().st_mtime > _UPLOAD_SECONDS:
                left.unlink(missing_ok=True)
        stream.seek(0)
        try:
            with path.open("wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
        except BaseException:
            path.unlink(missing_ok=True)  # half a file is of no use
            raise
    return path


def rejected_records(workspace: Workspace, name: str) -> Path | None:
    """The file of the records that an import could not use: one JSON object a line with place, reason and record. None without any.

    Raises:
        StudioError: there is no such dataset.
    """
    path = load_dataset(workspace, name).folder / REJECTED_FILE
    return path if path.exists() else None


def first_records(path: Path, most: int) -> list[dict[str, Any]]:
    """The first records of a `rejected.jsonl`."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in itertools.islice(stream, most)]


def count_records(path: Path) -> int:
    """How many records a `rejected.jsonl` holds."""
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def copy_new(path: Path, target: str | Path) -> None:
    """Copy a file to a name that is free.

    Raises:
        StudioError: it is taken, or cannot be written.
    """
    new = Path(target).expanduser()
    if new.exists():
        raise StudioError("The file {path} exists already.", "Name a new file; nothing is overwritten.", path=new)
    try:
        with explain_full_disk(new):
            try:
                shutil.copyfile(path, new)
            except BaseException:
                new.unlink(missing_ok=True)  # half a file is of no use
                raise
    except OSError as error:
        raise StudioError("The file {path} cannot be written: {reason}.", "Name a file in a folder you may write to.",
                          path=new, reason=error.strerror or type(error).__name__) from error
