"""The sections of a recipe that say where a training runs and who else gets its numbers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from core.recipe.setting import Section, setting
from core.words import Text


class DeviceSection(Section):
    """Where it runs; nothing here changes what is learned, but for the rounding of FP8."""

    kind: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        Text("Device"),
        Text("auto takes the GPU when there is one."),
        choices=(("auto", Text("GPU when there is one")), ("cpu", Text("processor")),
                 ("cuda", Text("NVIDIA GPU"))),
    )
    micro_batch: int | None = setting(
        None,
        Text("Rows at a time"),
        Text("Rows held in memory at once; the effective batch stays the same. Left out, it is fitted to "
             "the memory."),
        unit=Text("rows"),
        minimum=1,
        maximum=65_536,
        level="expert",
    )
    checkpointing: Literal["on", "off"] = setting(
        "off",
        Text("Recompute activations"),
        Text("Saves memory and costs about a third more time."),
        choices=(("on", Text("less memory, slower")), ("off", Text("more memory, faster"))),
        level="expert",
    )
    speed: Literal["auto", "plain", "fast"] = setting(
        "auto",
        Text("Fast mode"),
        Text("auto trains adapters on Llama-like models with kernels of its own on a recent NVIDIA GPU: the same "
             "mathematics. fast also rounds the frozen weights to FP8 there, from the Hopper generation on."),
        choices=(("auto", Text("own kernels, the same mathematics")), ("plain", Text("transformers and PEFT as they are")),
                 ("fast", Text("FP8 too, where the GPU has it"))),
        level="expert",
    )
    gpus: Literal["auto"] | int | list[int] = setting(
        "auto",
        Text("GPUs"),
        Text("auto takes one; a number takes so many; a list names them, such as [0, 2]. They share the rows "
             "of every update. On a processor, a number is how many processes share them."),
        expects=Text("auto, a number from 1, or a list of different GPU numbers"),
        level="expert",
    )
    zero: Literal[0, 1, 2, 3] = setting(
        0,
        Text("ZeRO stage"),
        Text("What several GPUs divide among themselves instead of each holding all of it (DeepSpeed). A "
             "higher stage saves more memory and exchanges more data."),
        choices=((0, Text("nothing: the fastest, while the model fits one GPU")), (1, Text("the optimizer's state")),
                 (2, Text("the gradients too")), (3, Text("the model too: for one that fits no single GPU"))),
        level="expert",
    )
    offload: Literal["none", "optimizer", "all"] = setting(
        "none",
        Text("Offload"),
        Text("What ZeRO moves from the GPU to the main memory; saves much GPU memory and costs much time."),
        choices=(("none", Text("nothing is moved")), ("optimizer", Text("the optimizer's state")),
                 ("all", Text("the optimizer's state and, at stage 3, the model"))),
        shown_if=("device.zero", (1, 2, 3)),
        level="expert",
    )

    @field_validator("gpus", mode="after")
    @classmethod
    def name_each_gpu_once(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list) else []
        is_bad_count = isinstance(value, int) and value < 1
        if is_bad_count or any(number < 0 for number in numbers) or len(set(numbers)) < len(numbers):
            raise PydanticCustomError("bad_gpus", "not a count or a list of different numbers")
        return value


class LogSection(Section):
    """Where the numbers of a run go besides its own folder."""

    to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = setting(
        "none",
        Text("Tracker"),
        Text("A program that also gets loss, learning rate and speed, if it is installed. The run's own folder "
             "always has them."),
        choices=(("none", Text("the run's folder only")), ("tensorboard", Text("TensorBoard files in the run's folder")),
                 ("wandb", Text("Weights & Biases")), ("trackio", Text("Trackio")), ("mlflow", Text("MLflow"))),
        level="expert",
    )
