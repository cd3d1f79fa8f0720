"""Several adapters of one base model as one adapter: exactly, or by one of PEFT's recipes. Loads torch.

    cat        the weighted sum of the changes, exactly: the A and B matrices side by side, so ranks add up
    average    the same with weights that sum to 1: snapshots averaged
    linear     PEFT: A and B are averaged apart from each other, so the product has cross terms; the rank stays
    ties       PEFT: TIES (Yadav et al. 2023): trim small values, elect a sign, average those that agree
    dare       PEFT: DARE (Yu et al. 2023): drop values at random and scale up the rest

PEFT's three work on A and B, not on their product. How strong the result is beside the exact weighted sum is measured and told: for K
snapshots of one run, which point the same way, `linear` with weights 1/K is about K times too strong.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import nn

from core.chat.stacked import Adapter, read_adapter_config, read_deltas
from core.errors import StudioError
from core.merge.methods import EXACT, RATIO_TOLERANCE, check_weights
from core.train.snapshots import TEMPLATE_FILES
from core.words import Text
from core.workspace import fill_folder

How = Literal["cat", "average", "linear", "ties", "dare"]
_PEFT_NAME = {"linear": "linear", "ties": "ties", "dare": "dare_linear"}
Deltas = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class Combination(BaseModel):
    """What came of combining.

    Attributes:
        weights: as they were used.
        rank: of the new adapter.
        norm_ratio: Frobenius norm of its change of the weights over that of the exact weighted sum.
        cosine: between the two changes; 1 when they point the same way.
    """

    how: How
    weights: list[float]
    rank: int
    norm_ratio: float
    cosine: float

    def warning(self) -> Text | None:
        """What must be known before the result is used; None when it is as strong as the exact sum."""
        if abs(self.norm_ratio - 1) <= RATIO_TOLERANCE:
            return None
        if self.how == "linear" and self.norm_ratio > 1:
            return Text("PEFT's linear made this adapter {ratio:.2f} times as strong as the weighted sum: it adds A and B apart from each "
                        "other, and snapshots of one run add up. `average` is exact.", ratio=self.norm_ratio)
        return Text("This adapter is {ratio:.2f} times as strong as the weighted sum of its parts.", ratio=self.norm_ratio)


def combine(adapters: Sequence[Adapter], weights: Sequence[float] | None, how: How, target: Path, *, density: float = 0.5,
            seed: int = 0) -> Combination:
    """Write one adapter made of several into the folder `target`, in PEFT's format; tokenizer and template come from the first.

    Args:
        adapters: of the same base model; their strengths count into the weights.
        weights: one per adapter; None for equal shares that sum to 1.
        how: see the module's list.
        target: must not exist; appears whole or not at all.
        density: the share of values that TIES and DARE keep.
        seed: of DARE's dropping.

    Raises:
        StudioError: the adapters do not fit together, or the weights do not fit them.
    """
    used = check_weights(how, len(adapters), weights)
    parts = [read_deltas(adapter) for adapter in adapters]
    _check_shapes(adapters, parts)
    exact = _concatenate(parts, used)
    if how in EXACT:
        made: Deltas = exact
    else:
        made = _by_peft(adapters, parts, used, how, density, seed)
    ratio, cosine = _compare(made, exact)
    rank = max(a.shape[1] for a, _ in made.values())
    with fill_folder(target) as folder:
        _write(folder, made, rank, adapters[0].folder)
    return Combination(how=how, weights=used, rank=rank, norm_ratio=ratio, cosine=cosine)


def _check_shapes(adapters: Sequence[Adapter], parts: Sequence[Deltas]) -> None:
    """A layer that two adapters change must have one shape."""
    known: dict[str, tuple[int, int]] = {}
    for adapter, deltas in zip(adapters, parts, strict=True):
        for module, (a, b) in deltas.items():
            if known.setdefault(module, (a.shape[0], b.shape[1])) != (a.shape[0], b.shape[1]):
                raise StudioError("{name} does not fit the first adapter: layer {layer} has another shape.",
                                  "Only adapters of one base model can be combined.", name=adapter.name, layer=module)


def _concatenate(parts: Sequence[Deltas], weights: Sequence[float]) -> Deltas:
    """[A1 A2 ...] [w1 B1; w2 B2; ...]: the sum of the products, without rounding one of them."""
    made = {}
    for module in sorted(set().union(*parts)):
        pairs = [(deltas[module], weight) for deltas, weight in zip(parts, weights, strict=True) if module in deltas]
        made[module] = (torch.cat([a.float() for (a, _), _ in pairs], dim=1),
                        torch.cat([b.float() * weight for (_, b), weight in pairs], dim=0))
    return made


def _by_peft(adapters: Sequence[Adapter], parts: Sequence[Deltas], weights: Sequence[float], how: How, density: float,
             seed: int) -> Deltas:
    """PEFT's `add_weighted_adapter` on a model of nothing but the adapted layers; their base weights take no memory."""
    from peft import LoraConfig, LoraModel

    ranks = {max(a.shape[1] for a, _ in deltas.values()) for deltas in parts}
    if len(ranks) > 1:
        raise StudioError("{how} needs adapters of one rank, and these have {ranks}.", "Use `cat` or `average`, which take any.",
                          how=how, ranks=", ".join(map(str, sorted(ranks))))
    skeleton = nn.Module()
    for module in sorted(set().union(*parts)):
        a, b = next(deltas[module] for deltas in parts if module in deltas)
        _place(skeleton, module, a.shape[0], b.shape[1])
    configs = {}
    for number, (adapter, deltas) in enumerate(zip(adapters, parts, strict=True)):
        assert adapter.folder is not None
        given = read_adapter_config(adapter.folder)
        configs[f"part{number}"] = LoraConfig(
            r=given["r"], lora_alpha=given["lora_alpha"], use_rslora=bool(given.get("use_rslora")), target_modules=sorted(deltas),
            rank_pattern=given.get("rank_pattern") or {}, alpha_pattern=given.get("alpha_pattern") or {})
    with torch.random.fork_rng(devices=[]):
        first, *others = configs
        model = LoraModel(skeleton, configs[first], first)
        for name in others:
            model.peft_config[name] = configs[name]
            model.inject_adapter(skeleton, name)
        for name, adapter, deltas in zip(configs, adapters, parts, strict=True):
            _fill(skeleton, name, deltas, adapter.strength)
        torch.manual_seed(seed)
        factors = [weight * adapter.strength for weight, adapter in zip(weights, adapters, strict=True)]
        options = {} if how == "linear" else {"density": density}
        model.add_weighted_adapter(list(configs), factors, "made", combination_type=_PEFT_NAME[how], **options)
    made = {}
    for module in sorted(set().union(*parts)):
        layer = skeleton.get_submodule(module)
        made[module] = (layer.lora_A["made"].weight.detach().T, layer.lora_B["made"].weight.detach().T * layer.scaling["made"])
    return made


def _place(skeleton: nn.Module, name: str, wide: int, out: int) -> None:
    """Put a linear layer at a dotted name; its weight is one zero, seen as a matrix."""
    parent = skeleton
    *path, last = name.split(".")
    for part in path:
        if part not in dict(parent.named_children()):
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    with torch.device("meta"):
        linear = nn.Linear(wide, out, bias=False)
    linear.weight = nn.Parameter(torch.zeros(1).expand(out, wide), requires_grad=False)
    parent.add_module(last, linear)


def _fill(skeleton: nn.Module, name: str, deltas: Deltas, strength: float) -> None:
    """Give PEFT's layers their A and B. `deltas` have scale and strength in B, which PEFT applies itself; they are taken out again."""
    for module, (a, b) in deltas.items():
        layer = skeleton.get_submodule(module)
        scale = layer.scaling[name] * strength
        layer.lora_A[name].weight.data = a.T.float().contiguous()
        layer.lora_B[name].weight.data = (b.T.float() / scale if scale else b.T.float()).contiguous()


def _compare(made: Deltas, exact: Deltas) -> tuple[float, float]:
    """(norm of `made` / norm of `exact`, cosine between them), over all layers together.

    <A1 B1, A2 B2> = sum((A1^T A2) * (B1 B2^T)), so no matrix of the layer's own size is ever made.
    """
    def inner(left: Deltas, right: Deltas) -> float:
        return sum(float(((left[name][0].double().T @ right[name][0].double())
                          * (left[name][1].double() @ right[name][1].double().T)).sum()) for name in left)

    squared, whole, across = inner(made, made), inner(exact, exact), inner(made, exact)
    if squared <= 0 or whole <= 0:
        raise StudioError("With these weights nothing is left of the adapters.", "Give weights that do not cancel each other.")
    return (squared / whole) ** 0.5, across / (squared * whole) ** 0.5


def _write(folder: Path, deltas: Deltas, rank: int, first: Path | None) -> None:
    """A PEFT folder with alpha = r, so that its scale is 1."""
    assert first is not None
    config = read_adapter_config(first)
    last_names = sorted({name.rsplit(".", 1)[-1] for name in deltas})
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": last_names,
               "inference_mode": True}
    tensors = {}
    for name, (a, b) in deltas.items():
        # A layer that fewer adapters change has fewer rows; zeros bring it to the common rank.
        wide, out = torch.zeros(rank, a.shape[0]), torch.zeros(b.shape[1], rank)
        wide[:a.shape[1]], out[:, :b.shape[0]] = a.T, b.T
        tensors[f"base_model.model.{name}.lora_A.weight"], tensors[f"base_model.model.{name}.lora_B.weight"] = wide, out
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in TEMPLATE_FILES:
        if (first / name).exists():
            shutil.copyfile(first / name, folder / name)
