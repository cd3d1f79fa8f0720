"""XTuner's LoRA weights as a PEFT adapter, over a base model in Llama's layout or in InternLM2's own. Imports torch: for workers only.

A plain `iter_N.pth` holds them under `state_dict`; with DeepSpeed `iter_N.pth` is a folder, and ZeRO-1 and 2 keep them whole under
`module` of `mp_rank_00_model_states.pt`. Names there: `llm.base_model.model.model.layers.3.attention.wqkv.lora_A.default.weight`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.convert.pickles import read_checkpoint
from core.errors import StudioError
from core.models.header import read_config, tensor_shapes
from core.models.internlm2 import PACKED, llama_names, split_packed_rows
from core.workspace import write_json

_LORA = re.compile(r"(?:llm\.)?(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
_STEP = re.compile(r"(?:iter|epoch)_(\d+)")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class XtunerCheckpoint:
    """What one checkpoint of XTuner holds.

    Attributes:
        step: its number, in iterations (micro-batches).
        layers: layer as XTuner calls it -> {"A": (rank, in), "B": (out, rank)}.
        config: the text of the config that trained it; empty where the file does not carry it.
    """

    step: int
    layers: dict[str, dict[str, torch.Tensor]]
    config: str

    @property
    def rank(self) -> int:
        return next(iter(self.layers.values()))["A"].shape[0]


def find_checkpoints(source: Path) -> list[Path]:
    """The checkpoints that a path means: a .pth file, a DeepSpeed folder, or each one of a work folder, by number.

    Raises:
        StudioError: there is none.
    """
    try:
        if source.is_file() or (source.is_dir() and _is_deepspeed(source)):
            return [source]
        found = [path for path in source.glob("*.pth") if path.is_file() or _is_deepspeed(path)] if source.is_dir() else []
    except OSError:
        found = []
    if not found:
        raise StudioError("There is no checkpoint of XTuner at {path}.",
                          "Name an iter_N.pth, or the folder of work_dirs that holds some.", path=source)
    return sorted(found, key=_step_of)


def _is_deepspeed(folder: Path) -> bool:
    return any(folder.glob("*_model_states.pt"))


def _step_of(path: Path) -> int:
    found = _STEP.search(path.name)
    return int(found.group(1)[:9]) if found else 0


def read_xtuner(path: Path) -> XtunerCheckpoint:
    """Read a checkpoint; nothing in it is run.

    Raises:
        StudioError: the file is hostile or damaged, holds something else than a LoRA adapter, or ZeRO-3 has divided it.
    """
    content = read_checkpoint(_weights_file(path))
    state = content.get("state_dict", content.get("module"))
    if not isinstance(state, dict):
        raise StudioError("{file} holds no checkpoint.", "Choose a file such as iter_768.pth of XTuner's work_dirs.", file=path)
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    config, step = meta.get("cfg"), meta.get("iter")
    return XtunerCheckpoint(_step_of(path) or (step if isinstance(step, int) and step > 0 else 1), _lora_layers(path, state),
                            config if isinstance(config, str) else "")


def _weights_file(path: Path) -> Path:
    """The file with the weights: the checkpoint itself, or the one of a DeepSpeed folder that every process shares."""
    if path.is_file():
        return path
    if (path / _DEEPSPEED_FILE).exists():
        return path / _DEEPSPEED_FILE
    raise StudioError("{path} was saved by ZeRO-3, which divides every weight among the processes.",
                      "Join it first: run the zero_to_fp32.py that lies beside it, or convert it with XTuner's pth_to_hf.", path=path)


def _lora_layers(path: Path, state: dict[Any, Any]) -> dict[str, dict[str, torch.Tensor]]:
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    others = []
    for name, tensor in state.items():
        match = _LORA.fullmatch(str(name))
        if match and isinstance(tensor, torch.Tensor) and tensor.dim() == 2:
            layers[match.group(1)][match.group(2)] = tensor
        else:
            others.append(str(name))
    if not layers:
        raise StudioError("{file} holds no LoRA adapter but {count} other tensors; it is of a full training.",
                          "Convert it with XTuner's pth_to_hf and add the folder: sweetspot models add.", file=path, count=len(others))
    if others:
        raise StudioError("{file} holds {name} beside the adapter, which a plain LoRA adapter has no place for.",
                          "Only adapters of language models are converted, without trained biases or whole layers.",
                          file=path, name=min(others)[:200])
    ranks = {tensor.shape[0 if side == "A" else 1] for pair in layers.values() for side, tensor in pair.items()}
    if len(ranks) != 1 or any(len(pair) != 2 for pair in layers.values()):
        raise StudioError("{file} holds an incomplete adapter: its matrices do not belong in pairs of one rank.",
                          "Copy the checkpoint again.", file=path)
    return dict(layers)


def adapt_to_base(checkpoint: XtunerCheckpoint, base: Path, shapes: dict[str, tuple[str, list[int]]]) -> dict[str, torch.Tensor]:
    """The adapter's tensors under PEFT's names, for the layers as the base model calls them.

    InternLM2's packed `wqkv` becomes q, k and v: W x + B A x keeps its value when the rows of B go where the rows of W went and each of
    the three has the same A.

    Raises:
        StudioError: a layer is not in the base, or has another shape there.
    """
    tensors: dict[str, torch.Tensor] = {}
    for layer, pair in checkpoint.layers.items():
        for name, a, b in _renamed(layer, pair, base, shapes):
            weight = shapes.get(f"{name}.weight") or (shapes.get("model.embed_tokens.weight") if name == "lm_head" else None)
            if weight is None or weight[1] != [b.shape[0], a.shape[1]]:
                raise StudioError("The adapter does not fit the base model in {base}: layer {layer} is {has}, the adapter's is {wants}.",
                                  "Name the base model that it was trained on with --base.", base=base, layer=layer,
                                  has=weight[1] if weight else "-", wants=[b.shape[0], a.shape[1]])
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.float().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.float().contiguous()
    return tensors


def _renamed(layer: str, pair: dict[str, torch.Tensor], base: Path,
             shapes: dict[str, Any]) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name in the base, A, B): one, or three for a packed layer."""
    names = llama_names(layer)
    if f"{layer}.weight" in shapes or not names:
        return [(layer, pair["A"], pair["B"])]
    if not layer.endswith(PACKED):
        return [(names[0], pair["A"], pair["B"])]
    config = read_config(base)
    heads = int(config.get("num_attention_heads") or 1)
    parts = split_packed_rows(pair["B"], heads, int(config.get("num_key_value_heads") or heads))
    # One copy of A each: safetensors keeps no two names for the same memory.
    return [(name, pair["A"].clone(), part) for name, part in zip(names, parts, strict=True)]


def write_adapter(checkpoint: XtunerCheckpoint, base: Path, base_name: str, settings: dict[str, Any], folder: Path) -> list[str]:
    """Write a PEFT adapter; returns the last names of the layers it adapts.

    Args:
        settings: `alpha`, and `dropout` and `rslora` where they are known.

    Raises:
        StudioError: it does not fit the base.
    """
    tensors = adapt_to_base(checkpoint, base, tensor_shapes(base))
    targets = sorted({name.removeprefix(_PREFIX).partition(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "r": checkpoint.rank,
        "lora_alpha": settings["alpha"], "lora_dropout": settings.get("dropout", 0.0), "use_rslora": settings.get("rslora", False),
        "target_modules": targets, "bias": "none", "inference_mode": True, "fan_in_fan_out": False})
    return targets
