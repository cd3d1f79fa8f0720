"""What a model folder says about itself, read from its headers alone: no weights are loaded, torch is not needed."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from pydantic import BaseModel

from core.errors import StudioError

# Output heads get no adapter: it would tie the adapter to the vocabulary and break merging where head and embedding are one.
HEAD_NAMES = ("lm_head", "output", "output_layer", "embed_out", "score")
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1}


class ModelHeader(BaseModel):
    """Facts of a model folder. Sizes in bytes, lengths in tokens."""

    architecture: str
    model_type: str
    parameters: int
    weight_bytes: int
    dtype: str
    context_tokens: int | None
    vocabulary: int | None
    hidden_size: int | None
    layers: int | None
    has_chat_template: bool


def read_header(folder: Path) -> ModelHeader:
    """Read the facts of a Hugging Face model folder.

    Raises:
        StudioError: no folder, no `config.json`, no weights, a shard that is missing or cut off, weights only as pickles.
    """
    config = read_config(folder)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config  # models that also see or hear
    tensors = tensor_shapes(folder)
    parameters = sum(math.prod(shape) for _, shape in tensors.values())
    sizes = sum(math.prod(shape) * _BYTES.get(dtype, 2) for dtype, shape in tensors.values())
    largest = max(tensors.values(), key=lambda item: math.prod(item[1]))
    return ModelHeader(
        architecture=_first_name(config.get("architectures")), model_type=str(config.get("model_type", "?")),
        parameters=parameters, weight_bytes=sizes, dtype=largest[0],
        context_tokens=_count(text, "max_position_embeddings"), vocabulary=_count(text, "vocab_size"),
        hidden_size=_count(text, "hidden_size"), layers=_count(text, "num_hidden_layers"),
        has_chat_template=(folder / "chat_template.jinja").exists() or "chat_template" in _tokenizer_config(folder),
    )


def _first_name(value: object) -> str:
    return str(value[0]) if isinstance(value, list) and value else "?"


def _count(config: dict, key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) else None


def read_config(folder: Path) -> dict:
    """The folder's `config.json`.

    Raises:
        StudioError: see `read_header`.
    """
    if not folder.is_dir():
        raise StudioError("There is no model folder at {folder}.", "`sweetspot models list` shows the models that are here.",
                          folder=folder)
    path = folder / "config.json"
    if path.exists():
        return _read_object(path)
    if (folder / "adapter_config.json").exists():
        raise StudioError("The folder {folder} holds an adapter, not a model.",
                          "Name it as RUN@STEP, or merge it first: sweetspot merge RUN@STEP NAME.", folder=folder)
    raise StudioError("The folder {folder} has no config.json, so it is not a model.",
                      "Point to the folder that holds config.json, the tokenizer and the .safetensors files.", folder=folder)


def _read_object(path: Path) -> dict:
    """A JSON file that must hold names with values."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudioError("{path} is not JSON: {reason}.", "Copy the model folder again; the file was damaged.",
                          path=path, reason=error) from error
    if not isinstance(data, dict):
        raise _cut_off(path)
    return data


def _tokenizer_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return _read_object(path) if path.exists() else {}


def tensor_shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> (dtype, shape) of every tensor in the folder's safetensors files.

    Raises:
        StudioError: see `read_header`.
    """
    tensors: dict[str, tuple[str, list[int]]] = {}
    for path in weight_files(folder):
        for name, entry in safetensors_header(path).items():
            if name != "__metadata__":
                tensors[name] = (entry["dtype"], entry["shape"])
    if not tensors:
        raise _no_weights(folder)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files as transformers would choose them, every shard present."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        return _shards(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise StudioError("The weights in {folder} are pickles, which can run code when they are read.",
                          "Use a copy of the model with .safetensors files.", folder=folder)
    raise _no_weights(folder)


def _shards(folder: Path, index: Path) -> list[Path]:
    weight_map = _read_object(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name for name in names):  # a shard lies beside its index, nowhere else
        raise _cut_off(index)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise StudioError("The model in {folder} is incomplete: {name} is missing ({count} of {total} files).",
                          "Copy or download the model again; the download was cut off.",
                          folder=folder, name=missing[0], count=len(missing), total=len(names))
    return [folder / name for name in names]


def _no_weights(folder: Path) -> StudioError:
    return StudioError("The folder {folder} holds no weights.", "It needs at least one .safetensors file beside config.json.",
                       folder=folder)


def safetensors_header(path: Path) -> dict:
    """Name -> dtype, shape and place of each tensor of a file.

    Raises:
        StudioError: the file is cut off or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER_BYTES, size):
            raise _cut_off(path)
        try:
            header = json.loads(stream.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
            is_whole = 8 + length + end <= size and all(math.prod(entry["shape"]) >= 0 and entry["dtype"] for entry in tensors)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise _cut_off(path) from error
    if not is_whole:
        raise _cut_off(path)
    return header


def _cut_off(path: Path) -> StudioError:
    return StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path)
