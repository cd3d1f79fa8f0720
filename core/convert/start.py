"""Starting a conversion: what can be known before is checked before, then a job does it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.merge.request import parse_size
from core.models.catalogue import find_base, new_model_folder
from core.runs import find_run
from core.workspace import Workspace, check_name, explain_full_disk, read_json, slug

GGUF_FORMATS = ("f16", "q8_0", "bf16", "f32")


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


def start_gguf(workspace: Workspace, model: str, form: str = "q8_0", target: str | None = None) -> Job:
    """Start writing a model as a GGUF file with a Modelfile for Ollama.

    Args:
        workspace: where the model is.
        model: a merged or added model; a checkpoint must be merged first.
        form: one of GGUF_FORMATS.
        target: the new folder; left out, `exports/<model>-<form>` in the workspace.

    Raises:
        StudioError: there is no such model or format, or the folder is there already.
    """
    if form not in GGUF_FORMATS:
        raise StudioError("There is no GGUF format {name} here.", "Choose one of {known}.", name=form, known=", ".join(GGUF_FORMATS))
    folder = _whole_model(workspace, model)
    name = slug(folder.name if folder.parent == workspace.models else model.rstrip("/").rsplit("/", 1)[-1]) or "model"
    place = Path(target).expanduser().absolute() if target else workspace.root / "exports" / f"{name}-{form}"
    if place.exists():
        raise StudioError("{path} exists already.", "Choose another name, or delete the old one first.", path=place)
    with explain_full_disk(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    return _start(workspace, "gguf", name, {"model": model, "name": name, "form": form, "target": str(place),
                                            "system": system_of(workspace, folder)})


def _whole_model(workspace: Workspace, model: str) -> Path:
    """The folder of a model that has weights of its own.

    Raises:
        StudioError: it is a checkpoint, or there is none.
    """
    if "@" in model:
        raise StudioError("{name} is a checkpoint: an adapter over a base model.", "Merge it first: sweetspot merge {name} NAME.",
                          name=model)
    return find_base(workspace, model)


def system_of(workspace: Workspace, folder: Path) -> str | None:
    """The system text that a merged model was trained with; None where there is none or nothing is known."""
    try:
        return find_run(workspace, str(read_json(folder / "merge.json")["model"]).partition("@")[0]).recipe().data.system
    except (OSError, ValueError, KeyError, TypeError, StudioError):
        return None


def _start(workspace: Workspace, kind: str, subject: str, spec: dict[str, Any]) -> Job:
    job = create_job(workspace.jobs / new_job_id(kind, subject), kind, spec)
    start_job(job)
    return job
