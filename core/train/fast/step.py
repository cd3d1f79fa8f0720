"""The fast path as the step of a training: its gradients, alone or beside other ranks, or within DeepSpeed's engine.

A micro-batch of few tokens ends on the GPU before Python has launched the next kernel: there, everything from the ids to the summed
gradients is recorded once as a CUDA graph and from then on launched as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from core.recipe.schema import ScheduleSection
from core.train.fast.flat import FlatRows, flat_rows
from core.train.fast.model import FastModel
from core.train.ranks import Ranks
from core.train.step import PlainStep
from core.train.update import Batch

# Up to so many tokens an H100 waits for Python; above, Python is ahead.
_GRAPH_TOKENS = 8192
# Each graph keeps the memory of its activations; more shapes than this are a sign of rows that will not repeat.
_MOST_GRAPHS = 8

Shape = tuple[int | bool, ...]


class FastStep(PlainStep):
    """AdamW over the adapters; the gradients of an update's micro-batches are summed in float32 in one place of memory."""

    def __init__(self, model: FastModel, parameters: dict[str, nn.Parameter], schedule: ScheduleSection, ranks: Ranks,
                 use_graphs: bool = True) -> None:
        """Take the adapters' `parameters` by name; they are those of `model`."""
        super().__init__(lambda batch: model.summed_loss(flat_rows(batch)), parameters, schedule, ranks)
        self.model = model
        self.model.refresh()
        self._sums = [torch.zeros_like(parameter) for parameter in model.parameters]
        model.add_gradients_to(self._sums)
        device = model.parameters[0].device
        self._weight = torch.ones((), device=device)
        self._use_graphs = use_graphs and device.type == "cuda"
        self._seen: set[Shape] = set()
        self._graphs: dict[Shape, tuple[FlatRows, torch.Tensor, torch.cuda.CUDAGraph]] = {}
        self._has_applied = False

    def backward(self, batch: Batch, weight: float, is_last: bool) -> torch.Tensor:
        """Add the gradients of weight x summed loss; returns the summed loss.

        As launched the first times; recorded once the optimizer's state is in memory, and replayed from then on.
        """
        self._weight.fill_(weight)
        is_small = self._use_graphs and batch.ids.numel() <= _GRAPH_TOKENS
        flat = flat_rows(batch, few_shapes=is_small)
        shape = flat.shape
        if is_small and self._has_applied and shape in self._seen and shape not in self._graphs and self._may_record():
            self._record(flat)
        self._seen.add(shape)
        try:
            return self._replay(flat) if is_small and shape in self._graphs else self._add(flat)
        except torch.OutOfMemoryError:
            self._forget_graphs()  # what they hold may be what is missing when the update is repeated
            raise

    def _add(self, flat: FlatRows) -> torch.Tensor:
        loss = self.model.summed_loss(flat)
        (loss * self._weight).backward()
        return loss.detach()

    def _may_record(self) -> bool:
        """Whether another graph would be one too many, or its memory too much beside what launching still needs."""
        device = self.model.device
        taken = torch.cuda.memory_allocated(device)
        allowed = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory - taken
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - taken
        needed = torch.cuda.max_memory_allocated(device) - taken
        return len(self._graphs) < _MOST_GRAPHS and min(allowed, free) > 2 * needed

    def _record(self, flat: FlatRows) -> None:
        """Keep a graph of `_add` for this shape; where the memory does not allow that, launch as before from now on."""
        graph = torch.cuda.CUDAGraph()
        self.model.scratch.forget()  # a replay must widen what it needs itself
        pool = next((held.pool() for _, _, held in self._graphs.values()), None)
        try:
            with torch.cuda.graph(graph, pool=pool):
                loss = self._add(flat)
            self._graphs[flat.shape] = flat, loss, graph
        except RuntimeError as error:
            print(f"no CUDA graphs: {str(error)[:200]}", flush=True)
            self._forget_graphs()
        self.model.scratch.forget()

    def _forget_graphs(self) -> None:
        self._use_graphs = False
        self._graphs.clear()
        torch.cuda.empty_cache()

    def _replay(self, flat: FlatRows) -> torch.Tensor:
        held, loss, graph = self._graphs[flat.shape]
        for target, source in zip(held.tensors, flat.tensors, strict=True):
            target.copy_(source)
        graph.replay()
        self.model.scratch.forget()
        return loss.clone()

    def drop_gradients(self) -> None:
        super().drop_gradients()
        torch._foreach_zero_(self._sums)

    def apply(self, rate: float) -> float:
        for parameter, total in zip(self.model.parameters, self._sums, strict=True):
            parameter.grad = total
        if not self._has_applied and self.model.device.type == "cuda":
            torch.cuda.empty_cache()  # or the optimizer's state would settle in pieces of the activations' memory
        norm = super().apply(rate)
        self.model.refresh()
        self._has_applied = True
        return norm

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        super().restore(tensors, step)
        self.model.refresh()


class FastLoss(nn.Module):
    """The fast path as a module, for an engine that wants one; it shows the engine nothing but what is trained."""

    def __init__(self, model: FastModel, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._fast = model

    def forward(self, batch: Batch) -> torch.Tensor:
        return self._fast.summed_loss(flat_rows(batch))

    def refresh(self) -> None:
        """The parameters have changed."""
        self._fast.refresh()
