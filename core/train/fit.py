"""Computing an update within the memory there is: how much to take at a time, and half of it when that was too much."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from core.data.encode import Encoded
from core.errors import StudioError
from core.recipe.schema import Recipe
from core.train.batches import Fit, share_rows, split_rows
from core.train.ranks import Ranks
from core.train.step import Step
from core.train.update import Batch, collate, trained_targets
from core.words import Text

# More tokens at a time do not make a processor faster, and a GPU is busy with fewer than these.
_MOST_TOKENS = {"cpu": 8192, "cuda": 65_536}
# Who recomputes activations wants little memory taken; so many tokens already keep an H100 busy.
_MOST_TOKENS_SAVING = 4096
_SHARE_OF_FREE_MEMORY = 0.7
_BYTES_TO_COME = 12
# What torch's allocators for main memory and the libraries below it say; they have no exception of their own.
_WORDS_OF_ALLOCATORS = ("can't allocate memory", "out of memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED",
                        "CUDNN_STATUS_ALLOC_FAILED")


def first_fit(recipe: Recipe, model: PreTrainedModel, device: str, processes: int = 1) -> Fit:
    """What to take at a time to begin with; a recipe's own number of rows is taken as it is.

    The tokens are a power of two, so that a little more or less free memory changes nothing.
    """
    kind = device.partition(":")[0]
    if recipe.device.micro_batch is not None:
        return Fit(2**62, recipe.device.micro_batch)
    free = torch.cuda.mem_get_info()[0] if kind == "cuda" else psutil.virtual_memory().available
    # Gradients and AdamW's two moments come with the first update; ZeRO divides them.
    trained = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters() if parameter.requires_grad)
    to_come = trained * _BYTES_TO_COME / (processes if recipe.device.zero else 1)
    affordable = int(_SHARE_OF_FREE_MEMORY * max(0, free - to_come) / activation_bytes(recipe, model))
    most = _MOST_TOKENS_SAVING if recipe.device.checkpointing == "on" else _MOST_TOKENS[kind]
    return Fit(min(most, 1 << max(affordable, 1).bit_length() - 1))


def activation_bytes(recipe: Recipe, model: PreTrainedModel) -> float:
    """Rough memory of one token on its way through the model, kept for the way back.

    A layer of width h keeps some 34 h bytes in 2-byte numbers (Korthikanti et al. 2022, section 4.1, without the attention matrix, which
    fused attention never writes); the adapters' inputs in their own format come on top. Checkpointing keeps 2 h of it.
    """
    config, size = model.config.get_text_config(), next(model.parameters()).element_size()
    of_layer = size if recipe.device.checkpointing == "on" else 17 * size + 10
    return config.hidden_size * (config.num_hidden_layers * of_layer + 34 * size)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS_OF_ALLOCATORS)


class Accumulator:
    """Adds up the gradients of one update, micro-batch by micro-batch, over all ranks."""

    def __init__(self, step: Step, ranks: Ranks, fit: Fit, pad_id: int, device: str, is_packed: bool,
                 on_smaller: Callable[[Fit], Any] = lambda fit: None) -> None:
        """Prepare for updates.

        Args:
            step: computes the gradients.
            ranks: who share the rows.
            fit: what to take at a time; `self.fit` is smaller after an update that did not fit.
            pad_id: fills up padded rows.
            device: where the model is.
            is_packed: lay rows end to end.
            on_smaller: is told when less is taken from now on.
        """
        self.step, self.ranks, self.fit, self.pad_id, self.device, self.is_packed = step, ranks, fit, pad_id, device, is_packed
        self.on_smaller = on_smaller

    def run(self, rows: Sequence[Encoded], seed: int) -> float:
        """Leave the gradients of the update's mean loss with the step; returns that loss in nats per trained token.

        What did not fit the memory is dropped and done again with half as many rows at a time: the same rows, so nothing is lost.

        Raises:
            StudioError: a single row does not fit, or the gradients cannot be taken back.
        """
        targets = sum(trained_targets(row) for row in rows)
        while True:
            torch.manual_seed(seed)  # dropout of an update is the same after a resume
            shares = share_rows(rows, self.ranks.count)
            plans = [split_rows(share, self.fit, self.is_packed) for share in shares]
            parts = plans[self.ranks.index]
            try:
                summed, is_too_much = self._run_parts(rows, parts, max(map(len, plans)), targets), False
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not self.step.can_repeat:
                    raise _too_much(self.device, self.fit.halved(parts)) from error
                summed, is_too_much = 0.0, True
            total, failures = self.ranks.total(summed, is_too_much)
            if not failures:
                return total / targets
            self._take_less(plans)

    def _run_parts(self, rows: Sequence[Encoded], parts: Sequence[Sequence[Encoded]], most: int, targets: int) -> float:
        """Way there and back for each part; where ranks go in step, one with fewer parts repeats a row that counts nothing."""
        plan: list[tuple[Sequence[Encoded], float]] = [(part, 1 / targets) for part in parts]
        if self.step.is_in_step:
            plan += [(rows[:1], 0.0)] * (most - len(plan))
        losses = [self.step.backward(self._batch(part), weight, number == len(plan)) * (weight > 0)
                  for number, (part, weight) in enumerate(plan, 1)]
        return float(torch.stack(losses).sum()) if losses else 0.0

    def _batch(self, part: Sequence[Encoded]) -> Batch:
        return collate(part, self.pad_id, self.device, self.is_packed)

    def _take_less(self, plans: Sequence[Sequence[Sequence[Encoded]]]) -> None:
        smaller = self.fit.halved([part for parts in plans for part in parts])
        self.step.drop_gradients()
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if smaller is None:
            raise _too_much(self.device, None)
        self.fit = smaller
        self.on_smaller(smaller)


class OutOfMemory(StudioError):
    """It did not fit; `smaller` is what to try after a restart, None when nothing is left to halve."""

    smaller: Fit | None = None


def _too_much(device: str, smaller: Fit | None) -> OutOfMemory:
    error = OutOfMemory(
        "A single row does not fit into the {place} memory.",
        "Three ways out: shorten the rows (data.max_length), set device.checkpointing: on, or hold the base model in 4 bits "
        "(model.quantization: nf4).", place=_memory_of(device))
    error.smaller = smaller
    return error


def no_room_for_optimizer(device: str) -> StudioError:
    """The rows fitted, and what the optimizer keeps of every trained value does not: fewer rows at a time would change nothing."""
    return StudioError(
        "The optimizer's state does not fit into the {place} memory.",
        "Three ways out: train an adapter, or one of a smaller rank (method.kind: lora, method.rank), divide the state among GPUs or move "
        "it to the main memory (device.zero: 2, device.offload: optimizer), or take a smaller model.", place=_memory_of(device))


def _memory_of(device: str) -> Text:
    return Text("main") if device == "cpu" else Text("GPU")
