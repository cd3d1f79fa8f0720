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
    tensors = tensor_shapes(folder)
    parameters = sum(math.prod(shape) for _, shape in tensors.values())
    sizes = sum(math.prod(shape) * _BYTES.get(dtype, 2) for dtype, shape in tensors.values())
    largest = max(tensors.values(), key=lambda item: math.prod(item[1]))
    return ModelHeader(
        architecture=(config.get("architectures") or ["?"])[0], model_type=config.get("model_type", "?"),
        parameters=parameters, weight_bytes=sizes, dtype=largest[0],
        context_tokens=config.get("max_position_embeddings"), vocabulary=config.get("vocab_size"),
        hidden_size=config.get("hidden_size"), layers=config.get("num_hidden_layers"),
        has_chat_template=(folder / "chat_template.jinja").exists() or "chat_template" in _tokenizer_config(folder),
    )


def read_config(folder: Path) -> dict:
    if not folder.is_dir():
        raise StudioError("There is no model folder at {folder}.", "`sweetspot models list` shows the models that are here.",
                          folder=folder)
    path = folder / "config.json"
    if not path.exists():
        raise StudioError("The folder {folder} has no config.json, so it is not a model.",
                          "Point to the folder that holds config.json, the tokenizer and the .safetensors files.", folder=folder)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudioError("{path} is not JSON: {reason}.", "Copy the model folder again; the file was damaged.",
                          path=path, reason=error) from error


def _tokenizer_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def tensor_shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> (dtype, shape) of every tensor in the folder's safetensors files.

    Raises:
        StudioError: see `read_header`.
    """
    tensors: dict[str, tuple[str, list[int]]] = {}
    for path in weight_files(folder):
        for name, entry in _safetensors_header(path).items():
            if name != "__metadata__":
                tensors[name] = (entry["dtype"], entry["shape"])
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, every shard present."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise StudioError("The model in {folder} is incomplete: {name} is missing ({count} of {total} files).",
                              "Copy or download the model again; the download was cut off.",
                              folder=folder, name=missing[0], count=len(missing), total=len(names))
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise StudioError("The weights in {folder} are pickles, which can run code when they are read.",
                          "Use a copy of the model with .safetensors files.", folder=folder)
    raise StudioError("The folder {folder} holds no weights.", "It needs at least one .safetensors file beside config.json.",
                      folder=folder)


def _safetensors_header(path: Path) -> dict:
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER_BYTES, size):
            raise _cut_off(path)
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise _cut_off(path) from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if 8 + length + end > size:
        raise _cut_off(path)
    return header


def _cut_off(path: Path) -> StudioError:
    return StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path)
