"""Whether the device can do what a recipe asks of it: GPUs, number formats, quantisation, ZeRO, memory, and who else is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.jobs.queue import holder
from core.machine import BFLOAT16_FROM, Gpu, gpu_users, has_package
from core.recipe.finding import Finding
from core.recipe.forecast import Forecast, free_bytes
from core.recipe.memory import gpu_count, read_shape
from core.recipe.schema import Recipe
from core.words import Text
from core.workspace import Workspace

# Compute capability that bitsandbytes asks for.
_NF4_FROM, _INT8_FROM = (6, 0), (7, 5)
# Buffers in which ZeRO collects gradients and gathers weights, in values: core.train.zero sizes them to what is trained, up to this.
_LARGEST_BUCKET = 200_000_000
_NOTICED_BYTES = 5e8


def check_device(recipe: Recipe, gpus: list[Gpu]) -> Iterator[Finding]:
    """What follows from the recipe and the machine alone."""
    on_cpu = recipe.device.kind == "cpu" or not gpus
    if recipe.device.kind == "cuda" and not gpus:
        yield Finding("no_gpu", "error", Text("The recipe asks for an NVIDIA GPU, and this machine shows none."),
                      Text("Set device.kind to auto, or check the driver with `nvidia-smi`."), "device.kind")
    for is_asked, field, package in ((recipe.model.quantization != "none", "model.quantization", "bitsandbytes"),
                                     (recipe.device.zero > 0, "device.zero", "deepspeed")):
        if is_asked and not has_package(package):
            yield Finding("missing_package", "error", Text("{field} needs the package {package}, which is not installed.",
                                                           field=field, package=package),
                          Text("Run `make setup`, or leave the field at its default."), field)
    yield from _quantization(recipe, gpus, on_cpu)
    yield from _number_format(recipe, gpus, on_cpu)
    asked = recipe.device.gpus
    highest = max(asked) + 1 if isinstance(asked, list) and asked else gpu_count(recipe)
    if not on_cpu and highest > len(gpus):
        yield Finding("too_few_gpus", "error", Text("The recipe asks for {wanted} GPUs, and this machine has {count}.",
                                                    wanted=highest, count=len(gpus)),
                      Text("Set device.gpus to at most {count}, or start it on a larger machine.", count=len(gpus)), "device.gpus")


def _quantization(recipe: Recipe, gpus: list[Gpu], on_cpu: bool) -> Iterator[Finding]:
    bits = recipe.model.quantization
    if bits == "none":
        return
    if recipe.method.kind == "full":
        yield Finding("frozen_weights", "error", Text("Quantised weights cannot be trained; only an adapter over them can."),
                      Text("Choose LoRA, or full precision."), "model.quantization")
        return
    if recipe.device.zero == 3:
        yield Finding("quantized_zero3", "error", Text(
            "ZeRO-3 divides each weight among the GPUs and cannot divide weights in {bits}: QLoRA with ZeRO-3, with or without offload, "
            "does not work.", bits=bits), Text("Set device.zero to 2 or less, or model.quantization to none."), "device.zero")
    if on_cpu:
        yield Finding("slow_quantization", "warning", Text(
            "{bits} without a GPU saves little and is much slower: a processor widens every weight again for each use.", bits=bits),
            Text("Use full precision on a processor."), "model.quantization")
    else:
        least = _NF4_FROM if bits == "nf4" else _INT8_FROM
        for gpu in _asked(recipe, gpus):
            if gpu.capability is not None and gpu.capability < least:
                yield Finding("old_gpu", "error", Text(
                    "{gpu} is too old for {bits}: its compute capability is {has}, and {needs} is needed.", gpu=gpu.name, bits=bits,
                    has="{}.{}".format(*gpu.capability), needs="{}.{}".format(*least)), Text("Use full precision on this GPU."),
                    "model.quantization")
                return


def _asked(recipe: Recipe, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that the recipe names or counts, as far as they are there."""
    asked = recipe.device.gpus
    return [gpu for gpu in gpus if gpu.index in asked] if isinstance(asked, list) else gpus[:gpu_count(recipe)]


def _number_format(recipe: Recipe, gpus: list[Gpu], on_cpu: bool) -> Iterator[Finding]:
    dtype = recipe.model.dtype
    if dtype == "float16" and recipe.device.zero > 0:
        yield Finding("float16_zero", "error", Text(
            "With ZeRO, float16 would lose small gradients: its weights and their gradients are held in one format."),
            Text("Set device.zero: 0, or model.dtype to bfloat16 or float32."), "model.dtype")
    if dtype in ("bfloat16", "float16") and on_cpu:
        yield Finding("slow_dtype", "warning", Text("{dtype} on a processor is usually several times slower than float32.", dtype=dtype),
                      Text("Use float32 or auto."), "model.dtype")
        return
    old = next((gpu for gpu in _asked(recipe, gpus) if gpu.capability is not None and gpu.capability < BFLOAT16_FROM), None)
    if dtype == "bfloat16" and old is not None and old.capability is not None:
        yield Finding("no_bf16", "warning", Text(
            "{gpu} does not compute in bfloat16 itself (compute capability {has}; 8.0 does): it is emulated, and many times slower.",
            gpu=old.name, has="{}.{}".format(*old.capability)),
            Text("Set model.dtype to float32.") if recipe.device.zero else Text("Set model.dtype to float16."), "model.dtype")


def check_zero(recipe: Recipe, base: Path | None, parameters: int) -> Iterator[Finding]:
    """ZeRO and offload where they cannot help; without a model (`base`) here, without the number."""
    stage = recipe.device.zero
    if stage and gpu_count(recipe) == 1:
        yield Finding("zero_alone", "warning", _why_not_alone(recipe, base, parameters),
            Text("Set device.zero to 0, or device.gpus to 2 or more. To save memory on one GPU, use nf4 or device.checkpointing."),
            "device.zero")
    if recipe.device.offload != "none" and not stage:
        yield Finding("idle_offload", "warning", Text("Offload is a part of ZeRO; without a stage nothing is moved to the main memory."),
                      Text("Set device.zero to 2 or 3, or device.offload to none."), "device.offload")


def _why_not_alone(recipe: Recipe, base: Path | None, parameters: int) -> Text:
    stage = recipe.device.zero
    if base is None:
        return Text(
            "ZeRO stage {stage} divides state among GPUs, and with one GPU there is nobody to divide with: it would use more memory, "
            "for its buffers and a second copy of what is trained.", stage=stage)
    trained = parameters if recipe.method.kind == "full" else read_shape(base).adapter_parameters(recipe)
    # Two buckets that take turns, and a second, exact copy of what is trained.
    more = (2 * min(trained, _LARGEST_BUCKET) + trained) * 4
    return Text(
        "ZeRO stage {stage} divides state among GPUs, and with one GPU there is nobody to divide with: it would use about {more} GB "
        "more memory, for its buffers and a second copy of what is trained.", stage=stage, more=f"{more / 1e9:.2g}")


def check_memory(recipe: Recipe, known: Forecast) -> Iterator[Finding]:
    """Whether it fits: by the trial where there was one, else by arithmetic."""
    free = free_bytes(known.device)
    if known.memory is None or known.memory_bytes is None or not free:
        return
    if known.memory.before_activations > free:
        yield Finding("no_memory", "error", Text(
            "The model with what is trained takes {needed} GB before any row is read, and {free} GB are free.",
            needed=round(known.memory.before_activations / 1e9, 1), free=round(free / 1e9, 1)),
            Text("Use nf4 (model.quantization), a smaller model, or more GPUs."), "model.quantization")
    elif known.memory_bytes > free:
        yield Finding("much_memory", "warning", Text(
            "It needs about {needed} GB of memory at its peak, and {free} GB are free.", needed=round(known.memory_bytes / 1e9, 1),
            free=round(free / 1e9, 1)),
            Text("`sweetspot recipe fit` proposes what fits, with the same effective batch."), "device.micro_batch")


def check_busy(workspace: Workspace, known: Forecast) -> Iterator[Finding]:
    """Who has the device: jobs of this workspace, and other programs on the GPU."""
    job = holder(workspace, known.device)
    if job is not None:
        yield Finding("busy", "warning", Text("The device {device} is in use by {job}; this run will wait for it.", device=known.device,
                                              job=job.id), Text("Start it all the same; it begins by itself."), "device.kind")
    elif known.device != "cpu":
        indices = [int(name.removeprefix("cuda:")) for name in known.device.split(",")]
        users = [user for index in indices for user in gpu_users(index) if user.used_bytes >= _NOTICED_BYTES]
        if users:
            yield Finding("gpu_shared", "warning", Text("Other programs hold memory of the GPU: {users}.", users="; ".join(
                f"{user.name} (pid {user.pid}, {user.used_bytes / 1e9:.1f} GB)" for user in users)),
                Text("End them first, or expect a slower run with less memory."), "device.gpus")
