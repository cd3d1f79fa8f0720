"""Weights read and written one tensor at a time, so that memory holds the largest tensor, not the model. Loads torch.

`safetensors` itself writes a file from a dictionary that holds all of its tensors. The format allows more: its header needs only names,
types and shapes, and the values follow in order (github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from core.errors import StudioError
from core.models.header import weight_files
from core.workspace import write_json

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
          torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
          torch.float8_e5m2: "F8_E5M2"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A tensor on disk; `read` gives its value."""

    entry: Entry
    path: Path

    def read(self) -> torch.Tensor:
        """The value. The file is opened for this tensor alone, so its pages leave memory with it."""
        with safe_open(self.path, framework="pt") as shard:
            return shard.get_tensor(self.entry.name)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder by its name, in the order of the files.

    Raises:
        StudioError: a file is missing, damaged, or of a number format that torch does not have.
    """
    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a dict)
                    part = shard.get_slice(name)
                    found[name] = Stored(Entry(name, _DTYPES[part.get_dtype()], tuple(part.get_shape())), path)
        except KeyError as error:
            raise StudioError("{path} holds numbers of the format {format}, which cannot be read.", "Use a copy of the model in "
                              "float32, bfloat16 or float16.", path=path, format=error.args[0]) from error
        except Exception as error:  # safetensors' own class of errors is not public
            raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path) from error
    return found


def divide(entries: Iterable[Entry], max_bytes: float) -> list[list[Entry]]:
    """Entries in their order, cut into files of at most `max_bytes`; a larger tensor has a file for itself."""
    files: list[list[Entry]] = []
    size = math.inf
    for entry in entries:
        if size + entry.size_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.size_bytes
    return files


def write_files(folder: Path, files: Sequence[Sequence[Entry]], value: Callable[[str], torch.Tensor],
                on_tensor: Callable[[int, int], None]) -> None:
    """Write the files of a model, and its index where there is more than one.

    Args:
        value: gives the tensor of this name, of the entry's type and shape; asked once for each, in order.
        on_tensor: hears (tensors written, all of them).

    Raises:
        StudioError: the disk takes no file of this size.
        OSError: the disk is full.
    """
    total, done = sum(map(len, files)), 0
    names = [SINGLE] if len(files) == 1 else [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for name, entries in zip(names, files, strict=True):
        for _ in _write_file(folder / name, entries, value):
            done += 1
            on_tensor(done, total)
    if len(files) > 1:
        write_json(folder / INDEX, {
            "metadata": {"total_size": sum(entry.size_bytes for entries in files for entry in entries)},
            "weight_map": {entry.name: name for name, entries in zip(names, files, strict=True) for entry in entries}})


def _write_file(path: Path, entries: Sequence[Entry], value: Callable[[str], torch.Tensor]) -> Iterator[None]:
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # stable; wide types first keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [end, end + entry.size_bytes]}
        end += entry.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for entry in ordered:
                stream.write(_bytes_of(entry, value(entry.name)))
                yield
            stream.flush()
            os.fsync(stream.fileno())  # before the folder takes its name
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise StudioError("The disk takes no file as large as {path} ({size} GB).", "Use --max-shard-size, for example 2GB.",
                              path=path, size=round(end / 1e9, 2)) from error
        raise


def _bytes_of(entry: Entry, tensor: torch.Tensor) -> memoryview:
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{entry.name}: {tensor.dtype} {tuple(tensor.shape)} instead of {entry.dtype} {entry.shape}")
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
