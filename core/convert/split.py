"""A model in shards of another size, its values untouched. Imports torch: for workers only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.models.catalogue import find_base, new_model_folder
from core.models.header import read_header, weight_files
from core.words import Text
from core.workspace import Workspace, fill_folder, write_json

_INDEX = "model.safetensors.index.json"


def split_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Write the model `spec["model"]` anew as `models/<spec["name"]>`, in files of at most `spec["shard_bytes"]`."""
    spec = job.spec()
    source, target = find_base(workspace, spec["model"]), new_model_folder(workspace, spec["name"])
    needed = read_header(source).weight_bytes
    if needed > workspace.free_bytes():
        raise StudioError("The model needs {needed} GB of disk and {free} GB are free.", "Free some space first.",
                          needed=round(needed / 1e9, 2), free=round(workspace.free_bytes() / 1e9, 2))
    with fill_folder(target) as folder:
        files = split_weights(source, folder, spec["shard_bytes"],
                              lambda done, total: recorder.progress(done, total, Text("writing the shards")))
        for path in source.iterdir():
            if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt", ".md") and path.name != _INDEX:
                shutil.copyfile(path, folder / path.name)
    return {"folder": str(target), "files": files}


def split_weights(source: Path, folder: Path, shard_bytes: int, on_tensor: Callable[[int, int], None]) -> list[str]:
    """Write the tensors of `source` into files of at most `shard_bytes`, one file in memory at a time; a larger tensor has its own.

    Returns:
        The names of the files, with an index beside them when there are several.
    """
    total = sum(len(_names(path)) for path in weight_files(source))
    shards: list[Path] = []
    place: dict[str, int] = {}
    held: dict[str, torch.Tensor] = {}
    size = done = whole = 0

    def write() -> None:
        path = folder / f"shard-{len(shards):05d}.safetensors"
        save_file(held, path, metadata={"format": "pt"})
        place.update(dict.fromkeys(held, len(shards)))
        shards.append(path)
        held.clear()

    for name, tensor in _tensors(source):
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > shard_bytes:
            write()
            size = 0
        held[name] = tensor
        size, whole, done = size + bytes_, whole + bytes_, done + 1
        on_tensor(done, total)
    write()
    return _name_shards(folder, shards, place, whole)


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as shard:
        return list(shard.keys())


def _tensors(source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in weight_files(source):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                yield name, shard.get_tensor(name)


def _name_shards(folder: Path, shards: list[Path], place: dict[str, int], whole: int) -> list[str]:
    """The names that transformers looks for, known only when the number of shards is."""
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return ["model.safetensors"]
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for path, name in zip(shards, names, strict=True):
        path.rename(folder / name)
    weight_map = {tensor: names[index] for tensor, index in place.items()}
    write_json(folder / _INDEX, {"metadata": {"total_size": whole}, "weight_map": weight_map})
    return names
