"""The processes that share a training: who this one is, and the few words they exchange. One process alone needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# A rank may wait while another one saves a large model or asks the probes.
_PATIENCE = timedelta(minutes=60)
# Gradients travel in pieces of about this size: few enough messages, and no second copy of all of them.
_BUCKET_BYTES = 128e6


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes; number 0 records and saves for all.

    Attributes:
        index: 0 to count - 1, over all nodes.
        local: the number on its own node, which is also that of its GPU.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def join(cls, device_type: str) -> Ranks:
        """Join the others that torchrun started, by the environment it set; the collective talk begins here."""
        ranks = cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
        if device_type == "cuda":
            torch.cuda.set_device(ranks.local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)
        return ranks

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    def total(self, *numbers: float) -> list[float]:
        """The sum of each number over all ranks."""
        if self.is_alone:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(held)
        return held.tolist()

    def told_by_first(self, value: Any) -> Any:
        """What rank 0 says, for every rank."""
        if self.is_alone:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def wait_for_all(self) -> None:
        if not self.is_alone:
            self.total(0)

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make tensors what they are on rank 0."""
        if not self.is_alone:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each parameter's gradient by its sum over all ranks; none counts as zero.

        All pieces are under way at once, and while one is copied back the next ones still travel.
        """
        if self.is_alone:
            return
        under_way = []
        for bucket in _buckets(list(parameters)):
            flat = torch.cat([(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)).flatten()
                              for parameter in bucket])
            under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, travel in under_way:
            travel.wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)


def _buckets(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters of one number format and about `_BUCKET_BYTES` together."""
    buckets: list[list[torch.nn.Parameter]] = []
    room: dict[torch.dtype, tuple[int, list[torch.nn.Parameter]]] = {}
    for parameter in parameters:
        used, bucket = room.get(parameter.dtype, (0, []))
        size = parameter.numel() * parameter.element_size()
        if not bucket or used + size > _BUCKET_BYTES:
            used, bucket = 0, []
            buckets.append(bucket)
        bucket.append(parameter)
        room[parameter.dtype] = (used + size, bucket)
    return buckets


ALONE = Ranks()
