"""Gradients and the change of the weights, in one process or in several that each hold the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from core.errors import StudioError
from core.recipe.schema import ScheduleSection
from core.train.ranks import Ranks
from core.train.update import Batch

MOMENTS = ("exp_avg", "exp_avg_sq")
LossOf = Callable[[Batch], torch.Tensor]


class Step(Protocol):
    """What a training needs of whatever computes its gradients and holds its optimizer.

    `state` and `weights` are asked on every rank at once; only rank 0 needs what they give, tensor by tensor, in main memory.
    """

    parameters: dict[str, torch.nn.Parameter]
    can_repeat: bool  # whether gradients can be dropped in the midst of an update
    is_in_step: bool  # whether all ranks must make equally many micro-batches

    def backward(self, batch: Batch, weight: float, is_last: bool) -> torch.Tensor: ...
    def drop_gradients(self) -> None: ...
    def apply(self, rate: float) -> float: ...
    def state(self) -> Iterator[tuple[str, torch.Tensor]]: ...
    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None: ...
    def weights(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class PlainStep:
    """AdamW over whole tensors; several ranks add up their gradients once an update."""

    can_repeat = True
    is_in_step = False

    def __init__(self, loss: LossOf, parameters: dict[str, torch.nn.Parameter], schedule: ScheduleSection, ranks: Ranks,
                 scale: float = 1.0) -> None:
        """Prepare to train.

        Args:
            loss: the summed loss of a micro-batch.
            parameters: what is trained, by name.
            schedule: says how the weights change.
            ranks: whose gradients are added up.
            scale: the loss is multiplied by it on the way back and the gradient divided again, where float16 would lose small numbers.
        """
        self.loss, self.parameters, self.ranks, self.clip_norm = loss, parameters, ranks, schedule.clip_norm or math.inf
        self.scale = scale
        self.optimizer = make_optimizer(list(parameters.values()), schedule)
        ranks.copy_from_first(parameter.data for parameter in parameters.values())

    def backward(self, batch: Batch, weight: float, is_last: bool) -> torch.Tensor:
        """Add the gradients of weight x summed loss; returns the summed loss."""
        with batch.rows_apart():
            loss = self.loss(batch)
            (loss * (weight * self.scale)).backward()
        return loss.detach()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def apply(self, rate: float) -> float:
        """Change the weights, unless the gradient is no number; returns its norm before it is shortened."""
        self.ranks.sum_gradients(self.parameters.values())
        if self.scale != 1:
            torch._foreach_div_([parameter.grad for parameter in self.parameters.values() if parameter.grad is not None], self.scale)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.drop_gradients()
        return norm

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Exact value and moments of each parameter."""
        if not self.ranks.is_first:
            return
        for name, parameter in self.parameters.items():
            yield f"parameter.{name}", parameter.detach().cpu()
            for key in MOMENTS:
                yield f"{key}.{name}", self.optimizer.state[parameter][key].cpu()

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take over what `state` gave after update `step`."""
        check_fit(tensors, {name: parameter.shape for name, parameter in self.parameters.items()}, step)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
                moments = {key: tensors[f"{key}.{name}"].to(parameter.device, parameter.dtype) for key in MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.ranks.is_first:
            for name, parameter in self.parameters.items():
                yield name, parameter.detach().cpu()


def make_optimizer(parameters: list[torch.nn.Parameter], schedule: ScheduleSection) -> torch.optim.AdamW:
    """AdamW in one kernel; its learning rate is set before every step."""
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=schedule.weight_decay, fused=True)


def check_fit(tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size], step: int) -> None:
    """Raises StudioError when a kept state belongs to other parameters."""
    for name, shape in shapes.items():
        saved = tensors.get(f"parameter.{name}")
        if saved is None or saved.shape != shape:
            raise StudioError("The saved state of step {step} does not fit this recipe: {name} differs.",
                              "A run resumes with its own frozen recipe; start a new run to change it.", step=step, name=name)
