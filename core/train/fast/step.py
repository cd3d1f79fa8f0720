"""The gradients of one update, micro-batch by micro-batch.

A micro-batch of few tokens ends on the GPU before Python has launched the next kernel: there, everything from the ids to the summed
gradients is recorded once as a CUDA graph and then launched as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.data.encode import Encoded
from core.train.fast.flat import FlatRows, flatten_rows
from core.train.fast.model import FastModel

# Up to so many tokens an H100 waits for Python; above, Python is ahead.
_GRAPH_TOKENS = 8192
# Each graph keeps the memory of its activations' addresses; more shapes than this are a sign of rows that will not repeat.
_MOST_GRAPHS = 8


class UpdateGradients:
    """Adds up the gradients of an update's micro-batches in `.grad` of the adapters' parameters."""

    def __init__(self, model: FastModel, device: str, use_graphs: bool = True) -> None:
        self.model, self.device = model, device
        self._sums = [torch.zeros_like(parameter) for parameter in model.parameters]
        self._factor = torch.ones((), device=device)
        self._total = torch.zeros((), device=device)
        self._use_graphs = use_graphs and device.startswith("cuda")
        self._seen: set[tuple[int | bool, ...]] = set()
        self._graphs: dict[tuple[int | bool, ...], tuple[FlatRows, torch.cuda.CUDAGraph]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._use_graphs else None

    def run(self, parts: Sequence[Sequence[Encoded]], targets: int) -> torch.Tensor:
        """Set `.grad` to the gradient of the update's mean loss; returns that loss, on the device.

        Args:
            parts: the update's rows in micro-batches.
            targets: trained tokens of the whole update, over all processes that share it.
        """
        torch._foreach_zero_(self._sums)
        self._total.zero_()
        self._factor.fill_(1 / targets)
        for part in parts:
            is_small = self._use_graphs and sum(len(row.ids) for row in part) <= _GRAPH_TOKENS
            self._add(flatten_rows(part, self.device, few_shapes=is_small), is_small)
        for parameter, total in zip(self.model.parameters, self._sums, strict=True):
            parameter.grad = total
        return self._total.clone()

    def _add(self, flat: FlatRows, is_small: bool) -> None:
        """One micro-batch: as it is the first time, recorded the second, replayed from then on."""
        shape = flat.shape
        if not is_small or shape not in self._seen or (shape not in self._graphs and len(self._graphs) >= _MOST_GRAPHS):
            self._seen.add(shape)
            self._add_now(flat)
            return
        if shape not in self._graphs:
            self._graphs[shape] = flat, self._record(flat)
        held, graph = self._graphs[shape]
        for target, source in zip(held.tensors, flat.tensors, strict=True):
            target.copy_(source)
        graph.replay()
        self.model.scratch.forget()

    def _record(self, flat: FlatRows) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.model.scratch.forget()  # a replay must widen what it needs itself
        with torch.cuda.graph(graph, pool=self._pool):
            self._add_now(flat)
        return graph

    def _add_now(self, flat: FlatRows) -> None:
        loss = self.model.summed_loss(flat) * self._factor
        torch._foreach_add_(self._sums, list(torch.autograd.grad(loss, self.model.parameters)))
        self._total.add_(loss.detach())
