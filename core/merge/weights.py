"""W' = W + scale * B A for every adapted layer, shard by shard, so that one shard is in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.chat.stacked import Adapter, read_deltas
from core.errors import StudioError
from core.models.header import read_config, weight_files
from core.train.snapshots import TEMPLATE_FILES
from core.workspace import write_json


def merge_weights(base: Path, adapter: Adapter, target: Path, dtype: str, on_shard: Callable[[int, int], None]) -> int:
    """Write the merged model into the folder `target`; returns the number of changed tensors.

    The sum is computed in float32 and rounded once to `dtype`.

    Args:
        dtype: `auto` keeps each tensor's own, else float32, bfloat16 or float16 for all.

    Raises:
        StudioError: the adapter names a layer the base does not have.
    """
    deltas = read_deltas(adapter)
    left = set(deltas)
    files = weight_files(base)
    for index, path in enumerate(files):
        tensors = {}
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                weight = shard.get_tensor(name)
                wanted = weight.dtype if dtype == "auto" or not weight.is_floating_point() else getattr(torch, dtype)
                module = name.removesuffix(".weight")
                if module in deltas:
                    a, b = deltas[module]
                    weight = weight.float() + (a.float() @ b.float()).T
                    left.discard(module)
                tensors[name] = weight.to(wanted).contiguous()
        save_file(tensors, target / path.name, metadata={"format": "pt"})
        on_shard(index + 1, len(files))
    if left:
        raise StudioError("The adapter does not fit this base model: layer {layer} is missing or has another shape.",
                          "Load the adapter over the base model it was trained on; its run's recipe names it.", layer=min(left))
    _copy_the_rest(base, target, dtype)
    return len(deltas)


def _copy_the_rest(base: Path, target: Path, dtype: str) -> None:
    """Configuration, tokenizer and template travel unchanged, but for the stated dtype."""
    for name in (*TEMPLATE_FILES, "model.safetensors.index.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, target / name)
    config = read_config(base)
    if dtype != "auto":
        config["dtype"] = dtype
    write_json(target / "config.json", config)


def changed_tensors(base: Path, merged: Path) -> int:
    """How many tensors differ between two folders of the same layout, compared value by value on disk."""
    merged_index = {}
    for path in weight_files(merged):
        with safe_open(path, framework="pt") as shard:
            merged_index.update(dict.fromkeys(shard.keys(), path))
    changed = 0
    for path in weight_files(base):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                with safe_open(merged_index[name], framework="pt") as other:
                    after = other.get_tensor(name)
                changed += not torch.equal(shard.get_tensor(name).to(after.dtype), after)
    return changed


def same_templates(base: Path, merged: Path) -> bool:
    """Whether tokenizer and chat template are the same files, byte for byte."""
    names = [name for name in ("tokenizer.json", "chat_template.jinja") if (base / name).exists()]
    template = [json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template") for folder in (base, merged)]
    return template[0] == template[1] and all((base / name).read_bytes() == (merged / name).read_bytes() for name in names)
