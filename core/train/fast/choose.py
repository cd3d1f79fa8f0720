"""Whether the fast path can train a model, and how it should hold the frozen weights."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from core.recipe.schema import Recipe
from core.train.fast.group import Storage
from core.train.update import language_model
from core.words import Text

# Transformers' families whose decoder layer is: RMS norm, rotary attention, RMS norm, gated MLP with SiLU.
_FAMILIES = ("llama", "mistral", "qwen2")
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_AMPERE, _HOPPER = (8, 0), (9, 0)
# Triton's blocks are powers of two, and so is half a head where queries and keys are rotated; attention's kernels end at 256.
_HEAD_SIZES = (8, 16, 32, 64, 128, 256)
_FP8_MULTIPLE = 16
# Widening 4-bit weights for good must leave this share of the free memory to activations and gradients.
_LEFT_FOR_ACTIVATIONS = 0.5


@dataclass(frozen=True)
class FastPlan:
    """How the fast path will run; see `FastModel`."""

    storage: Storage
    recompute: bool


def plan_fast(recipe: Recipe, model: nn.Module, device: str, compute: torch.dtype = torch.bfloat16) -> FastPlan | Text:
    """The plan for this recipe, or the reason why the plain path is taken.

    Args:
        recipe: says how fast it shall be, and what is trained.
        model: with its adapters.
        device: where it is.
        compute: the number format that it shall compute in.

    `auto` takes what computes the same as the plain path, up to rounding; `fast` also rounds the frozen weights and what they are
    multiplied with to FP8, on a GPU that has it.
    """
    if recipe.device.speed == "plain":
        return Text("the recipe asks for the plain path")
    reason = _unfit_device(device) or _unfit_recipe(recipe) or _unfit_model(recipe, model)
    if reason is None and compute != torch.bfloat16:
        reason = Text("it computes in bfloat16 (model.dtype)")
    if reason is not None:
        return reason
    recompute = recipe.device.checkpointing == "on"
    if recipe.device.speed == "fast" and torch.cuda.get_device_capability(device) >= _HOPPER and _suits_fp8(model):
        return FastPlan("fp8", recompute)
    if recipe.model.quantization == "nf4" and (recompute or not _fits_widened(model, device)):
        return FastPlan("nf4", recompute)
    return FastPlan("exact", recompute)


def _unfit_device(device: str) -> Text | None:
    if not device.startswith("cuda") or torch.version.cuda is None:
        return Text("it needs an NVIDIA GPU")
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return Text("it needs a GPU of the Ampere generation or newer")
    return Text("Triton is not installed") if importlib.util.find_spec("triton") is None else None


def _unfit_recipe(recipe: Recipe) -> Text | None:
    method = recipe.method
    if method.kind != "lora" or method.dora:
        return Text("it trains LoRA only, without DoRA")
    if method.dropout > 0:
        return Text("it has no dropout (method.dropout is {share})", share=method.dropout)
    if recipe.model.quantization == "int8":
        return Text("it holds weights in 16 or 4 bits, not in int8")
    if recipe.device.zero == 3:
        return Text("ZeRO 3 divides the weights, which it needs whole")
    return None


def _unfit_model(recipe: Recipe, model: nn.Module) -> Text | None:
    base = language_model(model)
    config = base.config
    if config.model_type not in _FAMILIES or config.hidden_act != "silu":
        return Text("the model's family {family} has other layers than Llama", family=config.model_type)
    window = getattr(config, "sliding_window", None)
    if window is not None and window < recipe.data.max_length:
        return Text("the model's attention reaches back {window} tokens only", window=window)
    head = _head_size(config)
    if head not in _HEAD_SIZES:
        return Text("its kernels want attention heads of 8, 16, 32, 64, 128 or 256 values, and the model's have {size}", size=head)
    if base.get_output_embeddings().bias is not None:
        return Text("the model's output head has a bias")
    others = [name for name, parameter in model.named_parameters()
              if parameter.requires_grad and not any(f".{layer}.lora_" in name for layer in _ADAPTED)]
    return Text("{name} is trained too, which it cannot", name=others[0]) if others else None


def _head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _suits_fp8(model: nn.Module) -> bool:
    """Whether FP8 products can take every layer: both sides of a weight, and of weights side by side, in sixteens."""
    config = language_model(model).config
    sizes = (config.hidden_size, config.intermediate_size, _head_size(config) * config.num_attention_heads,
             _head_size(config) * config.num_key_value_heads)
    return all(size % _FP8_MULTIPLE == 0 for size in sizes)


def _fits_widened(model: nn.Module, device: str) -> bool:
    """Whether the 4-bit weights may be held in 16 bits from now on."""
    packed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters() if hasattr(parameter, "quant_state"))
    free, _ = torch.cuda.mem_get_info(device)
    return 4 * packed < free * (1 - _LEFT_FOR_ACTIVATIONS)


