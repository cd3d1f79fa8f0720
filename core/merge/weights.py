"""W' = W + B A for every adapted layer, tensor by tensor, so that memory holds the largest tensor and not the model.

Reads a base model's folder and an adapter's; writes a folder of plain safetensors that transformers 5 and 4.57 load.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from core.chat.stacked import Adapter, read_adapter_config, read_deltas
from core.errors import StudioError
from core.merge.quantized import Requantizer
from core.models.header import read_config
from core.models.portable import make_portable
from core.models.shards import Entry, Stored, divide, stored_tensors, write_files
from core.train.snapshots import TEMPLATE_FILES
from core.workspace import write_json

_HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"


def merge_weights(base: Path, adapter: Adapter, target: Path, dtype: str, on_tensor: Callable[[int, int], None], *,
                  max_shard_bytes: float | None = None, requantizer: Requantizer | None = None) -> int:
    """Write the merged model into the folder `target`; returns the number of tensors that had to change.

    The sum is computed in float32 and rounded once to `dtype`.

    Args:
        dtype: `auto` keeps each tensor's own, else float32, bfloat16 or float16 for all.
        on_tensor: hears (tensors written, all of them).
        max_shard_bytes: largest file; None keeps the base's own division into files.
        requantizer: merges onto the weights as the training saw them, quantised; None onto the base's own.

    Raises:
        StudioError: the adapter does not fit the base, or the number format cannot hold a value.
        OSError: the disk is full.
    """
    deltas = read_deltas(adapter)
    config = read_config(base)
    stored = stored_tensors(base)
    sources = dict(stored)  # by the names of the merged model
    if "lm_head" in deltas and _HEAD not in stored and config.get("tie_word_embeddings"):
        # Head and embedding were one matrix. The adapter changed the head alone, so they part.
        sources[_HEAD] = next(tensor for name, tensor in stored.items() if name.endswith(_EMBEDDING))
        config["tie_word_embeddings"] = False
    is_turned = bool(deltas) and bool(read_adapter_config(adapter.folder).get("fan_in_fan_out"))  # GPT-2 holds (in, out)
    _check_layers(deltas, sources, is_turned)

    def value(name: str) -> torch.Tensor:
        weight = sources[name].read()
        wanted = _wanted(weight.dtype, dtype)
        if requantizer is not None:
            weight = requantizer.apply(name, weight)
        pair = deltas.get(name.removesuffix(".weight"))
        if pair is not None:
            a, b = pair[0].float(), pair[1].float()
            weight = torch.addmm(weight.float(), a, b) if is_turned else torch.addmm(weight.float(), b.T, a.T)
        return _round(name, weight, wanted)

    entries = {name: Entry(name, _wanted(tensor.entry.dtype, dtype), tensor.entry.shape) for name, tensor in sources.items()}
    files = divide(entries.values(), max_shard_bytes) if max_shard_bytes else _as_the_base(entries, sources)
    write_files(target, files, value, on_tensor)
    _copy_the_rest(base, target, config | ({} if dtype == "auto" else {"dtype": dtype}))
    touched = {f"{name}.weight" for name in deltas}
    return len(touched | (requantizer.names & sources.keys() if requantizer else set()))


def _check_layers(deltas: dict[str, tuple[torch.Tensor, torch.Tensor]], sources: dict[str, Stored], is_turned: bool) -> None:
    for module, (a, b) in sorted(deltas.items()):
        tensor = sources.get(f"{module}.weight")
        shape = (a.shape[0], b.shape[1]) if is_turned else (b.shape[1], a.shape[0])
        if tensor is None or tensor.entry.shape != shape:
            raise StudioError("The adapter does not fit this base model: layer {layer} is missing or has another shape.",
                              "Load the adapter over the base model it was trained on; its run's recipe names it.", layer=module)


def _wanted(own: torch.dtype, dtype: str) -> torch.dtype:
    return own if dtype == "auto" or not own.is_floating_point else getattr(torch, dtype)


def _round(name: str, weight: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
    """`weight` in another format; float16 ends at 65504, and what lies beyond would become infinite without a word."""
    rounded = weight.to(wanted)
    if wanted == torch.float16 and weight.dtype != wanted and not bool(torch.isfinite(rounded).all()):
        raise StudioError("float16 cannot hold the values of {tensor}.", "Merge with --dtype bfloat16 or float32.", tensor=name)
    return rounded


def _as_the_base(entries: dict[str, Entry], sources: dict[str, Stored]) -> list[list[Entry]]:
    files: dict[Path, list[Entry]] = {}
    for name, entry in entries.items():
        files.setdefault(sources[name].path, []).append(entry)
    return list(files.values())


def _copy_the_rest(base: Path, target: Path, config: dict) -> None:
    """Tokenizer and template travel unchanged; the configurations get names that transformers 4.57 knows too."""
    for name in TEMPLATE_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, target / name)
    write_json(target / "config.json", config)
    make_portable(target)


def changed_tensors(base: Path, merged: Path) -> int:
    """How many tensors of two folders differ, compared value by value on disk; one that only one of them has differs."""
    before, after = stored_tensors(base), stored_tensors(merged)
    changed = len(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        if before[name].entry.shape != after[name].entry.shape:
            changed += 1
            continue
        value = after[name].read()
        changed += not torch.equal(before[name].read().to(value.dtype), value)
    return changed


def same_templates(base: Path, merged: Path) -> bool:
    """Whether tokenizer and chat template are the same files, byte for byte."""
    names = [name for name in ("tokenizer.json", "chat_template.jinja") if (base / name).exists()]
    template = [json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
                for folder in (base, merged)]
    return template[0] == template[1] and all((base / name).read_bytes() == (merged / name).read_bytes() for name in names)
