"""How long an update takes, worked out from the number of operations and what the device can do: a first guess, before a trial measures it.

A linear layer takes two operations per weight and token on the way there. On the way back its input's gradient takes two more, and its own
another two where it is trained; recomputed activations take the way there once more (Kaplan et al. 2020, section 2.1).
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from core.machine import processor_threads, read_gpus
from core.recipe.memory import Shape, gpu_count, micro_batch_tokens, read_shape
from core.recipe.schema import Recipe
from core.train.looks import SHARE

# Dense bfloat16 (float16 for T4 and V100) operations per second, from the makers' data sheets, by a part of the GPU's name.
_PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40": 362e12, "L4": 121e12,
          "A10": 125e12, "A6000": 155e12, "5090": 210e12, "4090": 165e12, "4080": 97e12, "3090": 71e12, "3080": 60e12, "T4": 65e12,
          "V100": 125e12}
# Of the peak: the course's job at 57,000 tokens a second on an H100 is 0.38 of its data sheet.
_GPU_SHARE = 0.35
# Of small float32 products on all cores, which a training gets: 58 of 174 GFLOP/s with the embedded model on two cores.
_CPU_SHARE = 0.33
# From the start of the job to its first update: libraries, model, data. Measured with the embedded model on two cores.
_STARTUP_SECONDS = 7.0
# A look at the probes reads a few questions with the taught answer (core.train.watched).
_LOOK_TOKENS = 230
# A layer's kernels are started one by one: so long per layer and micro-batch on a GPU, there and back. XTuner's 2,650 tokens a second at
# one row of 1,024 are 16 ms for each of 24 layers.
_START_SECONDS = 0.008
# Small products by which a processor is measured, in one stretch.
_PRODUCTS = 200


def estimate_seconds(folder: Path, recipe: Recipe, device: str, tokens: float, trained: float, longest: int, looks: int) -> float | None:
    """Seconds of a whole training job with `looks` looks at the probes; see `training_seconds`."""
    training, rate = training_seconds(folder, recipe, device, tokens, trained, longest), operations_per_second(device)
    if training is None or rate is None:
        return None
    return _STARTUP_SECONDS + training + min(looks * _LOOK_TOKENS * 2.0 * read_shape(folder).parameters / rate, SHARE * training)


def training_seconds(folder: Path, recipe: Recipe, device: str, tokens: float, trained: float, longest: int) -> float | None:
    """Seconds of the updates themselves; None for a GPU that is not known.

    Args:
        folder: of the base model.
        recipe: says method, recomputing and how many GPUs share the work.
        device: `cpu`, or GPUs.
        tokens: read in all updates together.
        trained: of these, how many go through the output head.
        longest: tokens of the longest row.

    Raises:
        StudioError: the folder is no model.
    """
    rate = operations_per_second(device)
    if rate is None:
        return None
    shape, ranks = read_shape(folder), gpu_count(recipe)
    needed = tokens * operations_per_token(shape, recipe) + trained * 4.0 * shape.vocabulary * shape.hidden
    seconds = needed / (rate * ranks)
    if device != "cpu":
        # A GPU computes while the next kernels are started; it waits for them when there is little to compute.
        seconds = max(seconds, tokens / ranks / micro_batch_tokens(recipe, longest, device) * shape.layers * _START_SECONDS)
    return seconds


def operations_per_token(shape: Shape, recipe: Recipe) -> float:
    """Operations in the layers for one token, there and back, without the output head."""
    again = 2.0 if recipe.device.checkpointing == "on" else 0.0
    if recipe.method.kind == "full":
        return (6.0 + again) * shape.linear_parameters
    return (4.0 + again) * shape.linear_parameters + (6.0 + again) * shape.adapter_parameters(recipe)


def operations_per_second(device: str) -> float | None:
    """What a training gets of the device."""
    if device == "cpu":
        return _CPU_SHARE * processor_rate()
    gpus = read_gpus()
    peak = next((peak for name, peak in _PEAKS.items() if gpus and name in gpus[0].name), None)
    return _GPU_SHARE * peak if peak else None


@cache
def processor_rate() -> float:
    """Operations per second of small float32 matrix products on all cores of this processor; measured once, in some 30 ms.

    They are too small for the library to spread over cores, so that a busy machine does not slow them down many times over; the best of
    short stretches on one core is multiplied by the number of cores.
    """
    import numpy as np

    matrix = np.ones((64, 64), np.float32)
    best = min(_stretch_seconds(matrix) for _ in range(8))
    return _PRODUCTS * 2.0 * 64**3 / best * processor_threads()


def _stretch_seconds(matrix) -> float:
    began = time.perf_counter()
    for _ in range(_PRODUCTS):
        matrix @ matrix
    return time.perf_counter() - began
