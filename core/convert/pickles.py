"""Reading what torch.save wrote without running anything that the file names.

A pickle is a program: it may name any function of Python and have it called. XTuner's checkpoints name, beside tensors, objects of
mmengine and numpy (its message hub, its log buffers). `torch.load(weights_only=True)` refuses such a file whole. Here the few names that
make tensors are allowed; the names that XTuner's files are known to hold become placeholders that do nothing; every other name refuses
the file and is said.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from core.errors import StudioError

_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
# The names and logs beside the weights of a 7B training have some 20 MB; tensors do not lie in the pickle.
_MOST_PICKLE_BYTES = 256 << 20


class _Maker:
    """A function that a file may call. A file can also give what it named a "state", which sets attributes: here it cannot."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Maker(_rebuild_parameter),
    ("torch", "Size"): torch.Size,
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
}
# What XTuner, mmengine and DeepSpeed put beside the weights. None of it is needed, none of it is imported.
_INERT_PACKAGES = ("mmengine", "numpy", "deepspeed", "xtuner", "pathlib")
_INERT_NAMES = {("_codecs", "encode"), ("collections", "defaultdict"), ("collections", "deque"), ("datetime", "datetime"),
                ("torch", "device"), ("copyreg", "_reconstructor"),
                *(("builtins", name) for name in ("set", "frozenset", "slice", "complex", "bytearray", "int", "float", "dict", "list")),
                # HistoryBuffer is pickled with getattr(HistoryBuffer, "mean") and the like: a placeholder of a placeholder.
                ("builtins", "getattr")}


class Placeholder(dict):
    """What stands where a file names an object that is not read: it takes any arguments and state, and keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Pickles of lists call it."""

    def extend(self, items: Any) -> None:
        """Pickles of lists call it."""

    def add(self, item: Any) -> None:
        """Pickles of sets call it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return Placeholder()

    def __hash__(self) -> int:
        return 0


class _Forbidden(Exception):
    """The name that a file wanted and may not have."""


class Unpickler(pickle.Unpickler):
    """Python's own, with an allow-list in the one place where a name becomes an object."""

    def find_class(self, module: str, name: str) -> Any:
        """A name of the file as an object: one of the allowed, or a placeholder.

        Raises:
            _Forbidden: it is neither.
        """
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as old protocols call them
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.partition(".")[0] in _INERT_PACKAGES or (module, name) in _INERT_NAMES:
            return Placeholder
        raise _Forbidden(f"{module}.{name}")


# What torch.load asks of a pickle module.
_MODULE = SimpleNamespace(Unpickler=Unpickler, load=lambda file, **kwargs: Unpickler(file, **kwargs).load(), __name__=__name__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a file by torch.save, tensors on the processor and read from the file when they are looked at.

    Raises:
        StudioError: the file names something else than tensors and XTuner's own objects, or it is damaged.
    """
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", pickle_module=_MODULE, weights_only=False, mmap=True)
    except _Forbidden as error:
        raise StudioError("{file} was not read: it wants to use {name}, which no weights need. Nothing in it was run.",
                          "Do not open this file with other tools either, unless you trust whoever made it.", file=path,
                          name=str(error)[:200]) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError, RecursionError, MemoryError,
            pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error).split("\n")[0][:200] or type(error).__name__) from error
    for tensor in _tensors(content):
        # Steps of zero between its numbers make a tensor of any size out of a few bytes; copied, it would fill the memory.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise _damaged(path, f"a tensor of {tensor.numel()} numbers has {tensor.untyped_storage().nbytes()} bytes")
    if not isinstance(content, dict):
        raise StudioError("{file} holds no checkpoint.", "Choose a file such as iter_768.pth of XTuner's work_dirs.", file=path)
    return content


def _damaged(path: Path, reason: str) -> StudioError:
    return StudioError("{file} cannot be read as a checkpoint: {reason}.", "Copy the file again; it is damaged or cut off.", file=path,
                       reason=reason.rstrip("."))


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a file, however deep it lies; a container that holds itself is looked into once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _check_archive(path: Path) -> None:
    """Raises StudioError unless the file is what torch.save writes: older files and TorchScript take other ways through torch.load."""
    entries: list[zipfile.ZipInfo] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if not any(name.endswith("/data.pkl") for name in names) or any(name.endswith("/constants.pkl") for name in names):
        raise StudioError("{file} is no file that today's torch.save writes, or its end is missing.",
                          "Copy the checkpoint again; one by PyTorch before 1.6 must be saved anew by XTuner.", file=path)
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size:
            raise _damaged(path, "it is packed, which no checkpoint is")
        if entry.filename.endswith(".pkl"):
            if entry.file_size > _MOST_PICKLE_BYTES:
                raise _damaged(path, f"the names in it take {entry.file_size} bytes")
            with zipfile.ZipFile(path) as archive:
                _check_memo(path, archive.read(entry))


def _check_memo(path: Path, pickled: bytes) -> None:
    """Raises StudioError where an object is kept under a far number: Python makes room for all numbers below it."""
    for count, (opcode, number, _) in enumerate(pickletools.genops(pickled)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= number <= count:
            raise _damaged(path, f"it keeps an object as number {number}, and has no so many")
