"""Many LoRA adapters over one base model: each row of a batch goes through its own adapter, in one product per layer.

PEFT can mix adapters in a batch too, but loops over them inside every layer. Here the A and B matrices of all adapters are stacked, so
a layer computes `base(x) + bmm(bmm(x, A), B)` whatever the number of adapters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from core.errors import StudioError

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """One voice of an engine: a PEFT adapter folder at some strength, or the base model itself (`folder` None)."""

    name: str
    folder: Path | None = None
    strength: float = 1.0


class Routing:
    """Which adapter each row of the present batch uses. Rows are grouped by adapter and padded to equal groups."""

    def __init__(self, adapters: int) -> None:
        self.adapters = adapters
        self.rows_per_adapter = 0
        self.place: torch.Tensor = torch.empty(0, dtype=torch.long)
        self.is_dense = False

    def assign(self, slots: torch.Tensor) -> None:
        """Say which adapter (0..K-1) each row uses.

        Args:
            slots: shape (R,), integers.
        """
        counts = torch.bincount(slots, minlength=self.adapters)
        self.rows_per_adapter = int(counts.max())
        order = torch.argsort(slots, stable=True)
        first_of_group = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
        rank = torch.empty_like(slots)
        rank[order] = torch.arange(len(slots), device=slots.device) - first_of_group
        self.place = slots * self.rows_per_adapter + rank
        full = self.adapters * self.rows_per_adapter
        self.is_dense = len(slots) == full and bool((self.place == torch.arange(full, device=slots.device)).all())

    def product(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Each row times its own adapter.

        Args:
            x: (R, L, in).
            a: (K, in, r).
            b: (K, r, out), the adapter's scale folded in.

        Returns:
            (R, L, out).
        """
        rows, length, width = x.shape
        grouped = x
        if not self.is_dense:
            grouped = x.new_zeros(self.adapters * self.rows_per_adapter, length, width)
            grouped[self.place] = x
        grouped = grouped.reshape(self.adapters, self.rows_per_adapter * length, width)
        result = torch.bmm(torch.bmm(grouped, a), b).reshape(self.adapters * self.rows_per_adapter, length, -1)
        return result if self.is_dense else result[self.place]


class StackedLinear(torch.nn.Module):
    """A linear layer with K adapters beside it."""

    def __init__(self, base: torch.nn.Module, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
        super().__init__()
        self.base, self.a, self.b, self.routing = base, a, b, routing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.base(x)
        if self.routing.is_dense and x.dtype == self.a.dtype == whole.dtype:  # add as the product is made: one pass over memory less
            adapters, rows = self.routing.adapters, self.routing.rows_per_adapter * x.shape[1]
            narrow = torch.bmm(x.reshape(adapters, rows, -1), self.a)
            return torch.baddbmm(whole.reshape(adapters, rows, -1), narrow, self.b).reshape(whole.shape)
        return whole + self.routing.product(x.to(self.a.dtype), self.a, self.b).to(x.dtype)


def read_adapter_config(folder: Path) -> dict:
    path = folder / "adapter_config.json"
    if not path.exists():
        raise StudioError("The folder {folder} holds no adapter.", "An adapter folder has adapter_config.json and "
                          "adapter_model.safetensors; `sweetspot run show RUN` lists a run's checkpoints.", folder=folder)
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise StudioError("The adapter in {folder} is of the kind {kind}, which cannot be stacked.",
                          "Use a plain LoRA adapter, or merge this one first.", folder=folder,
                          kind="DoRA" if config.get("use_dora") else config.get("peft_type"))
    return config


def adapter_scale(config: dict, module: str = "") -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023); a module may have an alpha and r of its own."""
    rank = _own(config.get("rank_pattern"), module, config["r"])
    return _own(config.get("alpha_pattern"), module, config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _own(pattern: dict | None, module: str, default: float) -> float:
    """PEFT's rule: the first pattern that the module's name ends with."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_deltas(adapter: Adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name -> (A transposed: (in, r), B transposed with scale and strength folded in: (r, out)).

    Raises:
        StudioError: no adapter, one of another kind, or one with more than A and B matrices: what is left out would be missing silently.
    """
    if adapter.folder is None:
        return {}
    config = read_adapter_config(adapter.folder)
    tensors = load_file(adapter.folder / "adapter_model.safetensors")
    deltas = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight") and key.replace("lora_A", "lora_B") in tensors]:
        module = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        b = tensors.pop(key.replace("lora_A", "lora_B"))
        deltas[module] = (tensors.pop(key).T, b.T * (adapter_scale(config, module) * adapter.strength))
    if tensors:
        raise StudioError("The adapter in {folder} holds {tensor}, which is no A or B matrix of LoRA.",
                          "Train it without modules_to_save, bias and adapted embeddings; those cannot be stacked or merged.",
                          folder=adapter.folder, tensor=min(tensors))
    return deltas


def layer_sizes(linear: torch.nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's kind (Conv1D) tells them by its weight alone, which is (in, out)."""
    return (linear.in_features, linear.out_features) if hasattr(linear, "in_features") else tuple(linear.weight.shape)


def stack_adapters(model: PreTrainedModel, adapters: Sequence[Adapter]) -> Routing:
    """Put all adapters into `model`, in place; the returned routing says which row uses which.

    Raises:
        StudioError: an adapter does not fit this base model.
    """
    routing = Routing(len(adapters))
    all_deltas = [read_deltas(adapter) for adapter in adapters]
    modules = dict(model.named_modules())
    for name in sorted(set().union(*all_deltas)):
        linear = modules.get(name)
        pairs = [deltas.get(name) for deltas in all_deltas]
        shape = next(pair for pair in pairs if pair is not None)
        wide, out = (0, 0) if linear is None else layer_sizes(linear)
        if shape[0].shape[0] != wide or shape[1].shape[1] != out:
            raise StudioError("The adapter does not fit this base model: layer {layer} is missing or has another shape.",
                              "Load the adapter over the base model it was trained on; its run's recipe names it.", layer=name)
        rank = max(pair[0].shape[1] for pair in pairs if pair is not None)
        weight_dtype = torch.float32 if not linear.weight.dtype.is_floating_point else linear.weight.dtype
        a = torch.zeros(len(pairs), wide, rank, dtype=weight_dtype, device=linear.weight.device)
        b = torch.zeros(len(pairs), rank, out, dtype=weight_dtype, device=linear.weight.device)
        for slot, pair in enumerate(pairs):
            if pair is not None:
                own_rank = pair[0].shape[1]
                a[slot, :, :own_rank] = pair[0].to(a)
                b[slot, :own_rank] = pair[1].to(b)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, StackedLinear(linear, a, b, routing))
    return routing


def unstack_adapters(model: PreTrainedModel) -> None:
    """Take all adapters out of `model` again, in place: the base's own layers, untouched, are what stays."""
    stacked = [(name, module) for name, module in model.named_modules() if isinstance(module, StackedLinear)]
    for name, module in stacked:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.base)
