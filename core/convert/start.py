"""Starting a conversion: what can be known before is checked before, then a job does it. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.models.catalogue import find_base, new_model_folder
from core.workspace import Workspace, check_name

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_SMALLEST_SHARD = 1_000_000


def start_xtuner(workspace: Workspace, source: str, name: str, base: str, config: str | None = None, alpha: int | None = None,
                 data: str | None = None) -> Job:
    """Start making a run of XTuner's checkpoints.

    Args:
        workspace: where the run goes.
        source: an iter_N.pth, or a folder of them.
        name: of the run.
        base: the model they were trained on, as a recipe names it.
        config: the .py file that trained them, where the checkpoints do not carry it.
        alpha: of the adapter, where no config says it.
        data: the dataset whose probes shall judge them.

    Raises:
        StudioError: there is nothing at `source`, or no such base model.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise StudioError("There is no checkpoint of XTuner at {path}.", "Name an iter_N.pth, or the folder of work_dirs that holds some.",
                          path=source)
    find_base(workspace, base)
    return _start(workspace, "convert-xtuner", check_name(name, "run"), {
        "source": str(path.resolve()), "name": name, "base": base, "config": str(Path(config).resolve()) if config else None,
        "alpha": alpha, "data": check_name(data, "dataset") if data else None})


def start_split(workspace: Workspace, model: str, name: str, max_shard_size: str) -> Job:
    """Start writing a model anew in files of another size.

    Raises:
        StudioError: there is no such model, its new name is taken, or the size is none.
    """
    find_base(workspace, model)
    new_model_folder(workspace, name)
    return _start(workspace, "split", name, {"model": model, "name": name, "shard_bytes": parse_size(max_shard_size)})


def parse_size(text: str) -> int:
    """`2GB`, `500MB` or a number of bytes, in powers of ten as transformers counts them.

    Raises:
        StudioError: it is none, or below a megabyte.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]?)b?\s*", text.lower())
    size = round(float(match.group(1)) * _UNITS[match.group(2)]) if match else 0
    if size < _SMALLEST_SHARD:
        raise StudioError("{text!r} is no size of a file.", "Use at least 1MB; for example 2GB or 500MB.", text=text)
    return size


def _start(workspace: Workspace, kind: str, subject: str, spec: dict[str, Any]) -> Job:
    job = create_job(workspace.jobs / new_job_id(kind, subject), kind, spec)
    start_job(job)
    return job
