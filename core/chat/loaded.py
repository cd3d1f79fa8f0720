"""The base models in memory and the adapters over them; loads only what is not there yet. Loads torch."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from core.chat.batch import Batch
from core.chat.engine import Engine
from core.chat.kept import KeptCaches
from core.chat.panes import OutOfMemory
from core.chat.proof import hash_weights, stamp
from core.chat.stacked import Adapter, stack_adapters, unstack_adapters
from core.chat.thin import use_thin_products
from core.data.encode import Encoder
from core.errors import StudioError
from core.models.catalogue import Model
from core.models.header import HEAD_NAMES, read_header, tensor_shapes, weight_files
from core.models.load import choose_dtype, load_model, refuse_to_ask
from core.workspace import Workspace

Stamp = tuple[tuple[str, int, int], ...]
# Beside the weights: activations, the cache of a few answers, adapters.
_BESIDE_BYTES = 300e6
# Keys and values kept between turns, for each base: at most so much, and at most this share of what is free when it is loaded.
_KEPT_BYTES, _KEPT_SHARE = 1e9, 0.1
# Adapters that stay stacked although nobody asks for them now; each costs a little in every layer.
_MOST_STACKED = 4
# Bits of a parameter in memory: int8 with a scale per row, and NF4 with double quantisation (Dettmers et al. 2023, QLoRA, section 3).
_QUANTIZED_BITS = {"int8": 8.0, "nf4": 4.127}


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
    kept: KeptCaches
    voices: list[Voice] = field(default_factory=list)
    batch: Batch | None = None

    def has(self, voices: Sequence[Voice]) -> bool:
        return self.batch is not None and set(voices) <= set(self.voices)

    def stack(self, voices: Sequence[Voice]) -> Batch:
        """Give the batch with these voices; does nothing when they are stacked already. Only while nobody answers.

        Raises:
            StudioError: an adapter does not fit this base.
        """
        if self.batch is None or not self.has(voices):
            others = [voice for voice in self.voices if voice not in voices]
            wanted = list(dict.fromkeys(voices))
            wanted += others[max(0, len(others) - max(0, _MOST_STACKED - len(wanted))):]
            try:
                self._restack(wanted)
            except StudioError:
                self._restack(list(dict.fromkeys(voices)))  # one that nobody asked for may be gone from the disk
        assert self.batch is not None
        return self.batch

    def _restack(self, voices: list[Voice]) -> None:
        unstack_adapters(self.model)
        self.batch, self.voices = None, []
        routing = stack_adapters(self.model, [Adapter(str(voice.folder), voice.folder, voice.strength) for voice in voices])
        self.batch = Batch(Engine(self.model, self.end_ids, self.pad_id, routing), self.kept)
        self.voices = voices


class LoadedModels:
    """What is in memory now. `loads` counts the work done, for those who measure.

    Args:
        quantization: how base models are held: `none`, `nf4` or `int8`.
    """

    def __init__(self, workspace: Workspace, quantization: str = "none") -> None:
        self.workspace = workspace
        self.quantization = quantization
        self.loads = 0
        self._bases: dict[Path, Base] = {}
        self._encoders: dict[tuple[Path, str | None, Stamp], Encoder] = {}

    def names(self) -> list[str]:
        return [folder.name for folder in self._bases]

    def bases(self) -> list[Base]:
        return list(self._bases.values())

    def answering(self) -> list[Path]:
        """The bases that answer somebody now."""
        return [folder for folder, base in self._bases.items() if base.batch]

    def kept_bytes(self) -> int:
        """What is kept of conversations that may go on."""
        return sum(base.kept.size_bytes for base in self._bases.values())

    def forget_kept(self) -> None:
        for base in self._bases.values():
            base.kept.clear()

    def folders(self) -> list[str]:
        """Every folder whose weights are in memory: bases and adapters."""
        voices = [str(voice.folder) for base in list(self._bases.values()) for voice in list(base.voices) if voice.folder]
        return [*(str(folder) for folder in list(self._bases)), *voices]

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
        freed = sum(self._needed_bytes(folder, base.device) for folder, base in self._bases.items() if folder not in present)
        return sum(self._needed_bytes(folder, device) for folder in folders if folder not in present) <= _free_bytes(device) + freed

    def can_take(self, folder: Path, models: Sequence[Model], device: str) -> bool:
        """Whether these models can answer now: their base is idle, or answers with all of them stacked already."""
        base = self._bases.get(folder)
        if base is None or not base.batch:
            return True
        return self._is_loaded(folder, device) and base.batch.can_mix and base.has([self._voice(model) for model in models])

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

    def leave_other_devices(self, device: str) -> None:
        """Give back what idle bases hold on another device than the one to be used."""
        for folder in [folder for folder, base in self._bases.items() if base.device != device and not base.batch]:
            self._drop(folder)

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
        needed = self._needed_bytes(folder, device)
        if _free_bytes(device) < needed:
            self.forget_kept()
        for other in [other for other in self._bases if other not in keep]:
            if _free_bytes(device) < needed:
                self._drop(other)
        if (free := _free_bytes(device)) < needed:
            raise OutOfMemory("The model {name} needs about {needed} GB of memory and {free} GB are free.",
                              "Close other programs, or choose a smaller model.", name=model.name,
                              needed=round(needed / 1e9, 1), free=round(free / 1e9, 1))
        files = weight_files(folder)
        encoder = self.encoder(model)
        if header.vocabulary and encoder.tokenizer.get_vocab_size() > header.vocabulary:
            raise StudioError("The tokenizer of {name} knows {tokens} tokens and its weights {rows}.",
                              "The files are of different models: copy the model again.", name=model.name,
                              tokens=encoder.tokenizer.get_vocab_size(), rows=header.vocabulary)
        if self.quantization != "none":
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast, in every layer
        read = stamp(files)
        weights = hash_weights(self.workspace, files)
        loaded = load_model(folder, choose_dtype("auto", device), device, self.quantization)
        refuse_to_ask(loaded)
        use_thin_products(loaded)
        kept = KeptCaches(min(_KEPT_BYTES, _KEPT_SHARE * _free_bytes(device)))
        self._bases[folder] = Base(read, device, loaded, encoder.end_ids, encoder.pad_id(), weights, kept)
        self.loads += 1

    def _drop(self, folder: Path) -> None:
        if self._bases.pop(folder, None) is not None:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _needed_bytes(self, folder: Path, device: str) -> float:
        """Memory of a base model once loaded, in bytes. Embeddings, head and norms are never quantised."""
        bytes_each = torch.empty(0, dtype=choose_dtype("auto", device)).element_size()
        try:
            if self.quantization == "none":
                return read_header(folder).parameters * bytes_each + _BESIDE_BYTES
            shapes = tensor_shapes(folder)
        except StudioError:
            return 0.0  # it cannot be read; loading it says why
        small = _QUANTIZED_BITS[self.quantization] / 8
        return _BESIDE_BYTES + sum(
            math.prod(shape) * (small if len(shape) == 2 and not _is_whole(name) else bytes_each) for name, (_, shape) in shapes.items())


def _is_whole(tensor: str) -> bool:
    """Whether quantisation leaves this tensor as it is."""
    layer = tensor.removesuffix(".weight")
    return "embed" in layer or layer.rpartition(".")[2] in HEAD_NAMES


def _free_bytes(device: str) -> float:
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)
