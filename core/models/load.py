"""Load a base model into memory. Imports torch: for workers only."""

from __future__ import annotations

import ctypes
import inspect
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from core.errors import StudioError
from core.machine import processor_threads
from core.models.check import check_model
from core.models.header import HEAD_NAMES

# Of state spaces (Mamba), the layers whose weights the model's kernels read past the layer: an adapter over them would do nothing.
_STATE_SPACES = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_READ_PAST = ("out_proj", "dt_proj")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def choose_device(kind: str) -> str:
    """`auto` -> the first GPU when there is one, else the processor.

    Raises:
        StudioError: a GPU was asked for and there is none.
    """
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise StudioError("The recipe asks for a GPU and this machine shows none.",
                          "Set `device.kind: auto`, or look at `sweetspot doctor`.")
    return kind


def choose_dtype(name: str, device: str) -> torch.dtype:
    """`auto` -> bfloat16 on a GPU that has it, float32 elsewhere: a processor without bfloat16 units is 3 times slower with it.

    A GPU before the Ampere generation emulates it, which torch calls supported too, and which is many times slower.
    """
    if name == "auto":
        has_units = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_units else torch.float32
    return getattr(torch, name)


def load_model(folder: Path, dtype: torch.dtype, device: str, quantization: str = "none", is_divided: bool = False) -> PreTrainedModel:
    """A causal language model in evaluation mode on `device`.

    Args:
        quantization: `none`, `nf4` (4-bit NormalFloat, double quantisation, as in QLoRA) or `int8`.
        is_divided: DeepSpeed divides the weights among the processes while they are read.

    Raises:
        StudioError: the folder is no model, or its weights cannot be read.
    """
    logging.disable_progress_bar()  # a bar in a log file is noise
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or processor_threads()))
    check_model(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map=None if is_divided else {"": device}, local_files_only=True, trust_remote_code=False,
            use_safetensors=True, quantization_config=_quantization(quantization, dtype))
    except (ValueError, KeyError, OSError) as error:
        raise StudioError("The model in {folder} cannot be loaded: {reason}.",
                          "It must be of an architecture that transformers knows by itself, with its weights complete.",
                          folder=folder, reason=str(error).split("\n")[0][:300]) from error
    return model.eval()


def _quantization(name: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if name == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=compute_dtype)
    return BitsAndBytesConfig(load_in_8bit=True) if name == "int8" else None


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor, instead of giving every large block back to the system.

    Decoding makes and drops tensors of tens of megabytes at each token; as fresh pages each time they cost more than the arithmetic
    (benchmarks/scoring.py: judging 12 snapshots took five times as long on a virtual machine). For processes that end with their work;
    does nothing where the C library is not glibc. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            mallopt(option, value)


def can_continue(model: PreTrainedModel) -> bool:
    """Whether a model goes on from what it has read by a cache of keys and values; a pure state space (Mamba) remembers otherwise."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def refuse_to_ask(model: PreTrainedModel) -> None:
    """Raises StudioError for a model that can be trained, and whose answers would be made without what it has read."""
    if not can_continue(model):
        raise StudioError("Models of the family {family} can be trained here, and not asked, judged or merged: they remember what they "
                          "have read in a form of their own.",
                          "A checkpoint is a plain PEFT folder, which PEFT loads and merges; or take a model with attention in its layers.",
                          family=model.config.model_type)


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Last names of every linear layer except output heads; what `targets: all-linear` means. GPT-2's kind of layer (Conv1D) is one too."""
    head = model.get_output_embeddings()
    left_out = {*HEAD_NAMES, *(_READ_PAST if model.config.model_type in _STATE_SPACES else ())}
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules()
             if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head}
    return sorted(names - left_out)
