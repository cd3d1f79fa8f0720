"""The base models in memory and the adapters over them; loads only what is not there yet. Loads torch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from core.chat.engine import Engine
from core.chat.proof import hash_weights, stamp
from core.chat.stacked import Adapter, stack_adapters, unstack_adapters
from core.chat.thin import use_thin_products
from core.data.encode import Encoder
from core.errors import StudioError
from core.models.catalogue import Model
from core.models.header import read_header, tensor_shapes, weight_files
from core.models.load import choose_dtype, load_model
from core.workspace import Workspace

Stamp = tuple[tuple[str, int, int], ...]
# Beside the weights: activations, the cache of a few answers, adapters.
_BESIDE_BYTES = 300e6


@dataclass(frozen=True)
class Voice:
    """An adapter as it lies on disk: a changed file is another voice. `folder` None is the base itself."""

    folder: Path | None
    strength: float
    stamp: Stamp


@dataclass
class Base:
    """A base model in memory, with the voices stacked over it: voice number n is slot n of the engine."""

    stamp: Stamp
    device: str
    model: PreTrainedModel
    end_ids: Sequence[int]
    pad_id: int
    weights: str
    voices: list[Voice] = field(default_factory=list)
    engine: Engine | None = None

    def stack(self, voices: Sequence[Voice]) -> Engine:
        """Give the engine with these voices; does nothing when they are stacked already.

        Raises:
            StudioError: an adapter does not fit this base.
        """
        if self.engine is None or set(voices) != set(self.voices):
            unstack_adapters(self.model)
            self.engine, self.voices = None, []
            wanted = list(dict.fromkeys(voices))
            routing = stack_adapters(self.model, [Adapter(str(voice.folder), voice.folder, voice.strength) for voice in wanted])
            self.engine, self.voices = Engine(self.model, self.end_ids, self.pad_id, routing), wanted
        return self.engine


class LoadedModels:
    """What is in memory now. `loads` and `stacks` count the work done, for those who measure."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.loads = 0
        self._bases: dict[Path, Base] = {}
        self._encoders: dict[tuple[Path, str | None, Stamp], Encoder] = {}

    def names(self) -> list[str]:
        return [folder.name for folder in self._bases]

    def uses_gpu(self) -> bool:
        return any(base.device.startswith("cuda") for base in self._bases.values())

    def encoder(self, model: Model) -> Encoder:
        """The encoder of a model; tokenizer files that changed are read again."""
        files = [path for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
                 if (path := model.base / name).exists()]
        key = (model.base, model.system, stamp(files))
        if key not in self._encoders:
            self._encoders[key] = Encoder.from_folder(model.base, model.system)
        return self._encoders[key]

    def fit_together(self, folders: Sequence[Path], device: str) -> bool:
        """Whether these bases fit into memory at the same time, once all others are gone."""
        present = [folder for folder in folders if self._is_loaded(folder, device)]
        freed = sum(_needed_bytes(folder, base.device) for folder, base in self._bases.items() if folder not in present)
        return sum(_needed_bytes(folder, device) for folder in folders if folder not in present) <= _free_bytes(device) + freed

    def provide(self, folder: Path, models: Sequence[Model], device: str, keep: Sequence[Path]) -> tuple[Base, list[int]]:
        """The base in `folder` with the adapters of `models` over it, and the slot of each model.

        Args:
            keep: bases that must stay in memory; others make room when it is needed.

        Raises:
            StudioError: a model cannot be read, does not fit into memory, or an adapter belongs to another base.
        """
        voices = [self._voice(model) for model in models]
        if not self._is_loaded(folder, device):
            self._load(folder, models[0], device, keep)
        base = self._bases[folder] = self._bases.pop(folder)  # the last one used is the last to go
        base.stack(voices)
        return base, [base.voices.index(voice) for voice in voices]

    def drop_all(self) -> None:
        """Give all memory back."""
        for folder in list(self._bases):
            self._drop(folder)

    def _is_loaded(self, folder: Path, device: str) -> bool:
        base = self._bases.get(folder)
        return base is not None and base.device == device and base.stamp == stamp(weight_files(folder))

    def _voice(self, model: Model) -> Voice:
        if model.adapter is None:
            return Voice(None, 1.0, ())
        tensor_shapes(model.adapter)  # a file that is cut off is named here
        return Voice(model.adapter, model.strength, stamp(weight_files(model.adapter)))

    def _load(self, folder: Path, model: Model, device: str, keep: Sequence[Path]) -> None:
        self._drop(folder)
        header = read_header(folder)
        needed = _needed_bytes(folder, device)
        for other in [other for other in self._bases if other not in keep]:
            if _free_bytes(device) < needed:
                self._drop(other)
        if (free := _free_bytes(device)) < needed:
            raise StudioError("The model {name} needs about {needed} GB of memory and {free} GB are free.",
                              "Close other programs, or choose a smaller model.", name=model.name,
                              needed=round(needed / 1e9, 1), free=round(free / 1e9, 1))
        files = weight_files(folder)
        encoder = self.encoder(model)
        if header.vocabulary and encoder.tokenizer.get_vocab_size() > header.vocabulary:
            raise StudioError("The tokenizer of {name} knows {tokens} tokens and its weights {rows}.",
                              "The files are of different models: copy the model again.", name=model.name,
                              tokens=encoder.tokenizer.get_vocab_size(), rows=header.vocabulary)
        read = stamp(files)
        weights = hash_weights(self.workspace, files)
        loaded = load_model(folder, choose_dtype("auto", device), device)
        use_thin_products(loaded)
        self._bases[folder] = Base(read, device, loaded, encoder.end_ids, encoder.pad_id(), weights)
        self.loads += 1

    def _drop(self, folder: Path) -> None:
        if self._bases.pop(folder, None) is not None:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _needed_bytes(folder: Path, device: str) -> float:
    """Memory of a base model once loaded, in bytes."""
    bytes_each = torch.empty(0, dtype=choose_dtype("auto", device)).element_size()
    try:
        return read_header(folder).parameters * bytes_each + _BESIDE_BYTES
    except StudioError:
        return 0.0  # it cannot be read; loading it says why


def _free_bytes(device: str) -> float:
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)
