"""DeepSpeed's ZeRO: optimizer state, gradients and weights divided among the processes (Rajbhandari et al. 2020).

The mathematics stays that of one process: DeepSpeed takes the mean of the gradients over the ranks, so each rank's loss is multiplied
by their number. State goes in and out as whole float32 tensors by parameter name, so a run may be resumed at another stage, by another
number of processes, or by one alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from core.recipe.schema import Recipe
from core.train.fast.step import FastLoss
from core.train.ranks import Ranks
from core.train.step import MOMENTS, check_fit, make_optimizer
from core.train.update import Batch, SummedLoss

_LARGEST_BUCKET = 200_000_000
_SMALLEST_BUCKET = 500_000


def zero_config(recipe: Recipe, trained: int, largest: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's settings for a recipe.

    Args:
        recipe: says stage, offload and gradient limit.
        trained: number of trained values; the buckets are sized to them, as an adapter would never fill the usual half gigabyte.
        largest: values of the largest single weight; at stage 3 one of them and the next are held whole at a time.
        dtype: of the weights in computing; the optimizer's are float32 always.
    """
    device, stage = recipe.device, recipe.device.zero
    bucket = min(max(trained, _SMALLEST_BUCKET), _LARGEST_BUCKET)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "contiguous_gradients": True,
                            "overlap_comm": torch.cuda.is_available() and device.kind != "cpu", "reduce_scatter": True}
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": min(2 * largest, _LARGEST_BUCKET), "stage3_param_persistence_threshold": 10_000,
                 "stage3_max_live_parameters": max(4 * largest, 10 * _SMALLEST_BUCKET),
                 "stage3_max_reuse_distance": max(4 * largest, 10 * _SMALLEST_BUCKET)}
    if device.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if device.offload == "all" and stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": recipe.schedule.clip_norm,
        "bf16": {"enabled": dtype == torch.bfloat16}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": zero,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": 2**31 - 1,
    }


def import_deepspeed(device: str) -> Any:
    """DeepSpeed asks once, at import, what it runs on; `device` is as torch names it, `cuda:1` for one."""
    on_gpu = torch.device(device).type == "cuda"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed

    if not on_gpu:
        # A faster exchange between processes of one machine, which would first be compiled, and not every machine has a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class ZeroStep:
    """AdamW through DeepSpeed's engine."""

    can_repeat = False  # gradients that were exchanged already cannot be taken back
    is_in_step = True

    def __init__(self, loss: SummedLoss | FastLoss, parameters: dict[str, torch.nn.Parameter], recipe: Recipe, ranks: Ranks,
                 config: dict[str, Any], device_type: str) -> None:
        """Hand model and optimizer to DeepSpeed.

        Args:
            loss: the whole model; at stage 3 its weights may be divided already.
            parameters: what is trained, by name.
            config: from `zero_config`.
        """
        self._deepspeed = import_deepspeed(device_type)
        self.loss, self.parameters, self.ranks, self.stage = loss, parameters, ranks, recipe.device.zero
        self.shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in parameters.items()}
        optimizer = make_optimizer(list(parameters.values()), recipe.schedule)
        self.engine, self.optimizer, *_ = self._deepspeed.initialize(model=loss, optimizer=optimizer, config=config)

    def backward(self, batch: Batch, weight: float, is_last: bool) -> torch.Tensor:
        """Add the gradients of weight x summed loss; returns the summed loss."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        with batch.rows_apart():
            loss = self.engine(batch)
            self.engine.backward(loss * (weight * self.ranks.count))
        return loss.detach()

    def drop_gradients(self) -> None:
        self.engine.zero_grad()

    def apply(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        self._take_over()
        return float(self.engine.get_global_grad_norm())

    def _take_over(self) -> None:
        """Tell a loss that holds copies of the trained values."""
        if isinstance(self.loss, FastLoss):
            self.loss.refresh()

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Exact value and moments of each parameter, gathered from the ranks."""
        return self._gathered(("parameter", *MOMENTS))

    def _gathered(self, keys: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self.parameters.items():
            for key in keys:
                whole = (safe_get_full_fp32_param(parameter) if key == "parameter"
                         else safe_get_full_optimizer_state(parameter, key))
                if self.ranks.is_first:
                    yield f"{key}.{name}", whole.reshape(self.shapes[name]).float().cpu()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The exact weights, gathered from the ranks."""
        return ((name.removeprefix("parameter."), value) for name, value in self._gathered(("parameter",)))

    def restore(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take over what `state` gave after update `step`, at whatever stage and by however many."""
        check_fit(tensors, self.shapes, step)
        for flat in self._flat_weights():
            self.optimizer.optimizer.state[flat] = {"step": torch.tensor(float(step), device=flat.device),
                                                    **{key: torch.zeros_like(flat) for key in MOMENTS}}
        if self.stage < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            for key in ("parameter", *MOMENTS):
                self._set(parameter, tensors[f"{key}.{name}"], None if key == "parameter" else key)
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3), torch.no_grad():
                if self.stage < 3 or self.ranks.is_first:
                    parameter.data.copy_(tensors[f"parameter.{name}"])
        self._take_over()

    def _flat_weights(self) -> list[torch.Tensor]:
        """The float32 weights that this rank changes, a few long vectors; each of DeepSpeed's optimizers has its own name for them."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self.optimizer, name):
                return getattr(self.optimizer, name)
        raise TypeError(f"DeepSpeed's {type(self.optimizer).__name__} keeps its weights elsewhere")

    def _set(self, parameter: torch.nn.Parameter, value: torch.Tensor, key: str | None) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.float()
        if self.stage == 3:  # this rank's part; the last one's is padded where the values do not divide evenly
            size = parameter.ds_tensor.ds_numel
            part = torch.nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
            value = part.narrow(0, size * dist.get_rank(), size)
            safe_set_local_fp32_param(parameter, value) if key is None else safe_set_local_optimizer_state(parameter, value, key)
        else:
            safe_set_full_fp32_param(parameter, value) if key is None else safe_set_full_optimizer_state(parameter, value, key)
