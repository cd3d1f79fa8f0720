"""A transformers model with its adapters, trained through the fast layers.

The PEFT model stays what it is: it holds the trained parameters, is looked at and saved as ever. Only the loss is computed elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from core.train.fast.flat import FlatRows
from core.train.fast.group import Group, Member, Scratch, Storage, widened
from core.train.fast.head import HeadLoss
from core.train.fast.layer import AttentionParts, AttentionStep, MlpParts, MlpStep, Norm, Positions
from core.train.update import language_model

# Logits of so many bytes at a time: large enough for a full-speed product, small beside the activations.
_SLICE_BYTES = 768 << 20
_SLICE_BYTES_SMALL = 96 << 20


class FastModel:
    """The loss of a Llama-shaped model with LoRA.

    Args:
        model: the PEFT model, on its device.
        storage: how the frozen linear layers are held.
        recompute: keep one tensor a step and compute the rest again on the way back.
        dtype: what activations and widened weights are held in.
    """

    def __init__(self, model: nn.Module, storage: Storage, recompute: bool, dtype: torch.dtype = torch.bfloat16) -> None:
        base = language_model(model)
        self.config, self.body, self.recompute, self.dtype = base.config, base.model, recompute, dtype
        _shorten_frozen(base, dtype)
        self.scratch = Scratch()
        self.head = widened(base.get_output_embeddings(), dtype)
        self.norm = Norm(self.body.norm.weight.detach(), self.body.norm.variance_epsilon)
        self.layers = [(self._attention(layer, storage), self._mlp(layer, storage)) for layer in self.body.layers]
        self.slice_bytes = _SLICE_BYTES_SMALL if recompute else _SLICE_BYTES
        self._adapter_places = [place for group in self.groups() for place in group.adapter_places()]
        self.parameters = [parameter for group in self.groups() for parameter in group.parameters]
        self.refresh()

    def _attention(self, layer: Any, storage: Storage) -> AttentionParts:
        attention = layer.self_attn
        return AttentionParts(
            norm=Norm(layer.input_layernorm.weight.detach(), layer.input_layernorm.variance_epsilon),
            qkv=self._group([attention.q_proj, attention.k_proj, attention.v_proj], storage),
            out=self._group([attention.o_proj], storage),
            query_heads=self.config.num_attention_heads, key_heads=self.config.num_key_value_heads, head_size=attention.head_dim,
            scale=attention.scaling)

    def _mlp(self, layer: Any, storage: Storage) -> MlpParts:
        norm = layer.post_attention_layernorm
        return MlpParts(norm=Norm(norm.weight.detach(), norm.variance_epsilon),
                        gate_up=self._group([layer.mlp.gate_proj, layer.mlp.up_proj], storage),
                        down=self._group([layer.mlp.down_proj], storage))

    def _group(self, layers: Sequence[nn.Module], storage: Storage) -> Group:
        return Group([_member(layer) for layer in layers], self.dtype, storage, self.scratch)

    @property
    def device(self) -> torch.device:
        return self.head.device

    def groups(self) -> Iterator[Group]:
        for attention, mlp in self.layers:
            yield from (attention.qkv, attention.out, mlp.gate_up, mlp.down)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the adapters' values; call after each optimizer step, and after restoring them."""
        self.scratch.forget()
        places, parameters, factors = zip(*self._adapter_places, strict=True)
        torch._foreach_copy_(places, parameters)
        torch._foreach_mul_(places, factors)

    def add_gradients_to(self, sums: Sequence[torch.Tensor]) -> None:
        """From now on a way back adds the gradients of `parameters` to `sums` and leaves `.grad` alone."""
        left = iter(sums)
        for group in self.groups():
            group.sums = [next(left) for _ in group.parameters] or None

    def summed_loss(self, flat: FlatRows) -> torch.Tensor:
        """Sum of -log p over the trained tokens, float32; its gradients reach the adapters' parameters."""
        h = functional.embedding(flat.ids, self.body.embed_tokens.weight).to(self.dtype)
        cos, sin = self.body.rotary_emb(h[None], flat.places_in_row[None])
        at = Positions(flat.documents, cos[0], sin[0])
        delta = None
        for attention, mlp in self.layers:
            h, delta = AttentionStep.apply(h, delta, attention, at, self.recompute, *attention.parameters)
            h, delta = MlpStep.apply(h, delta, mlp, self.recompute, *mlp.parameters)
        return HeadLoss.apply(h, delta, self.norm, self.head, flat.predictors, flat.targets, self.slice_bytes)


def _shorten_frozen(base: nn.Module, dtype: torch.dtype) -> None:
    """Hold embeddings, norms and head as they were loaded: PEFT widens them to float32, in which nothing here computes."""
    for parameter in base.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _member(layer: nn.Module) -> Member:
    """A linear layer, adapted by PEFT or not."""
    if not hasattr(layer, "base_layer"):
        return Member(layer)
    (name,) = layer.active_adapters
    return Member(layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], layer)
