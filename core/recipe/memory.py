"""What a training holds in memory, by part, worked out from the model's header: arithmetic only, in milliseconds.

Weights, adapter, gradients and optimizer follow from the number of values. Activations are counted for a decoder of today's kind
(normalise, attend, gated feed-forward), as PyTorch keeps them for the way back; see `activation_values`. A trial measures what this
can only count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from core.machine import emulates_bfloat16
from core.models.header import HEAD_NAMES, read_config, tensor_shapes
from core.recipe.schema import Recipe

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# 4 bits and one float32 scale of a scale per 256 blocks of 64 weights (double quantisation, Dettmers et al. 2023): 4.127 bits.
QUANTISED_BYTES = {"nf4": 0.516, "int8": 1.0}
# Python with torch, transformers and PEFT loaded, measured as the resident memory of a worker before it loads a model.
RUNTIME_BYTES = 520e6
# Positions that go through the output head at a time (core.train.update).
HEAD_POSITIONS = 2048
# Tokens that a micro-batch holds at most when the recipe leaves its rows open (core.train.fit).
MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}
# Of the free memory, what a plan may fill: allocators leave gaps.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, in values; `adaptable` holds (last name, in + out) of each layer that may get an adapter."""

    parameters: int
    linear_parameters: int
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    key_value: int
    adaptable: tuple[tuple[str, int], ...]

    def adapter_parameters(self, recipe: Recipe) -> int:
        """Rank x (in + out) of every layer that the recipe adapts."""
        targets = recipe.method.targets
        return recipe.method.rank * sum(size for layer, size in self.adaptable if targets == "all-linear" or layer in targets)


@dataclass(frozen=True)
class Memory:
    """Bytes of each part at the peak of a training, on one device.

    Attributes:
        weights: the base model, quantised or not.
        adapter: the added matrices, in float32.
        gradients: of what is trained.
        optimizer: AdamW's two moments.
        activations: what the way back needs of one micro-batch.
        logits: of the positions that go through the head together, with their gradients.
        runtime: the libraries; on a processor they share the memory with the rest, on a GPU they are not counted.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def before_activations(self) -> int:
        return self.weights + self.adapter + self.gradients + self.optimizer


def read_shape(folder: Path) -> Shape:
    """The sizes of the model in a folder, from its config and its headers.

    Raises:
        StudioError: the folder is no model.
    """
    path = folder / "config.json"
    return _shape(folder, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=16)
def _shape(folder: Path, stamp: int) -> Shape:
    config = read_config(folder)
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    shapes = {name: shape for name, (_, shape) in tensor_shapes(folder).items()}
    linear = sum(math.prod(shape) for name, shape in shapes.items() if _is_adapted(name, shape))
    adaptable = tuple((name.removesuffix(".weight").rsplit(".", 1)[-1], sum(shape)) for name, shape in shapes.items()
                      if _is_adapted(name, shape))
    hidden = int(config.get("hidden_size") or 1)
    heads = int(config.get("num_attention_heads") or 1)
    key_value = int(config.get("num_key_value_heads") or heads) * int(config.get("head_dim") or hidden // heads)
    return Shape(sum(math.prod(shape) for shape in shapes.values()), linear, int(config.get("vocab_size") or 0), hidden,
                 int(config.get("intermediate_size") or 4 * hidden), int(config.get("num_hidden_layers") or 1), key_value, adaptable)


def _is_adapted(name: str, shape: list[int]) -> bool:
    layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
    return len(shape) == 2 and "embed" not in layer and layer not in HEAD_NAMES


def compute_dtype(recipe: Recipe, device: str) -> str:
    """The number format a run computes in; see core.models.load."""
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    return "float32" if device == "cpu" or emulates_bfloat16(device) else "bfloat16"


def activation_values(shape: Shape, rank: int) -> int:
    """Values per token and layer that PyTorch keeps for the way back, for a decoder as transformers writes Llama.

    Six of the hidden size (the input of both normalisations and their results, queries, attention's result), keys and values, and four
    of the feed-forward size (gate, its activation, up, their product); each adapter adds its narrow middle.
    """
    return 6 * shape.hidden + 2 * shape.key_value + 4 * shape.feed_forward + 7 * rank


def estimate_memory(folder: Path, recipe: Recipe, device: str, longest: int, free: int | None = None) -> Memory:
    """The peak memory of a training on one device.

    Where the recipe leaves the rows at a time open, they are fitted to the memory, as the training does it.

    Args:
        folder: of the base model.
        recipe: says method, number format, length, micro-batch and how GPUs share.
        device: `cpu`, or a GPU.
        longest: tokens of the longest row, cut at the recipe's limit.
        free: bytes that the device has free; None takes as much as the training may.

    Raises:
        StudioError: the folder is no model.
    """
    tokens = micro_batch_tokens(recipe, longest, device)
    memory = _with_tokens(folder, recipe, device, tokens)
    while recipe.device.micro_batch is None and free and memory.total > USABLE_SHARE * free and tokens > longest:
        tokens = max(longest, tokens // 2)
        memory = _with_tokens(folder, recipe, device, tokens)
    return memory


def _with_tokens(folder: Path, recipe: Recipe, device: str, tokens: int) -> Memory:
    """The same when `tokens` go through the model together."""
    shape, on_cpu = read_shape(folder), device == "cpu"
    computed = BYTES[compute_dtype(recipe, device)]
    is_full, is_quantised = recipe.method.kind == "full", recipe.model.quantization != "none"
    trained = shape.parameters if is_full else shape.adapter_parameters(recipe)
    ranks = gpu_count(recipe)
    stage = recipe.device.zero if ranks > 1 else 0
    held = 4.0 if is_full and stage == 0 else computed
    weights = shape.parameters * held
    if is_quantised:
        rest = shape.parameters - shape.linear_parameters
        weights = shape.linear_parameters * QUANTISED_BYTES[recipe.model.quantization] + rest * 4.0  # PEFT widens what is not quantised
    values = activation_values(shape, 0 if is_full else recipe.method.rank)
    kept = shape.layers * shape.hidden + values if recipe.device.checkpointing == "on" else shape.layers * values
    positions = min(HEAD_POSITIONS, tokens)
    memory = Memory(
        weights=round(weights), adapter=0 if is_full else 4 * trained, gradients=round(trained * (4.0 if stage < 3 else computed)),
        optimizer=8 * trained, activations=round(tokens * kept * computed), logits=round(positions * shape.vocabulary * (8 + computed)),
        runtime=round(RUNTIME_BYTES) if on_cpu else 0)
    return _divided(memory, recipe, ranks, stage, trained)


def _divided(memory: Memory, recipe: Recipe, ranks: int, stage: int, trained: int) -> Memory:
    """What each of several GPUs holds (Rajbhandari et al. 2020): stage 1 divides the optimizer, 2 the gradients, 3 the weights."""
    if stage == 0:
        return memory
    exact = 4 * trained if recipe.method.kind == "full" else 0  # ZeRO keeps float32 values beside the ones that compute
    optimizer = (memory.optimizer + exact) / ranks
    changed = replace(memory, optimizer=0 if recipe.device.offload != "none" else round(optimizer),
                      gradients=round(memory.gradients / (ranks if stage >= 2 else 1)))
    if stage == 3:
        weights = 0 if recipe.device.offload == "all" else memory.weights / ranks
        changed = replace(changed, weights=round(weights), adapter=round(memory.adapter / ranks))
    return changed


def gpu_count(recipe: Recipe) -> int:
    """How many processes share the work."""
    gpus = recipe.device.gpus
    return len(gpus) if isinstance(gpus, list) else gpus if isinstance(gpus, int) else 1


def micro_batch_tokens(recipe: Recipe, longest: int, device: str) -> int:
    """Tokens that are in memory at once, padding included, where memory is no matter."""
    rows = -(-recipe.schedule.effective_batch // gpu_count(recipe))
    if recipe.device.micro_batch is not None:
        return min(rows, recipe.device.micro_batch) * longest
    return min(rows * longest, max(MICRO_BATCH_TOKENS["cpu" if device == "cpu" else "cuda"], longest))
