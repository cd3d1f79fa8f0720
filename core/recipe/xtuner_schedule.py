"""The schedule of an XTuner config: micro-batches become updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from core.recipe.xtuner_notes import Notes, kind_of, number, section, shown
from core.recipe.xtuner_reading import Reference
from core.words import Text

# The mathematics of AdamW, whatever holds its moments.
_ADAMW = {"AdamW", "PagedAdamW32bit", "PagedAdamW", "FusedAdam", "DeepSpeedCPUAdam", "adamw_torch", "adamw_torch_fused",
          "paged_adamw_32bit"}
_OTHER_ADAMW = {"PagedAdamW8bit", "AdamW8bit", "adamw_8bit", "paged_adamw_8bit"}
_USUAL_BETAS = (0.9, 0.999)
_FEWEST_SNAPSHOTS = 12
_LONGEST_WARMUP = 0.1  # as a share of the run: more is never used here


@dataclass(frozen=True)
class Counts:
    """How XTuner counts.

    Attributes:
        packs_per_update: rows, or packs of rows, that one update sees on all GPUs together.
        micro_batches_per_update: iterations between two updates.
        epochs: of the run, when it is counted in epochs.
        updates: of the run, when it is counted in iterations.
    """

    packs_per_update: int
    micro_batches_per_update: int
    epochs: float | None
    updates: int | None


def read_schedule(values: dict[str, Any], gpus: int, notes: Notes) -> Counts:
    """Map batch, length, learning rate, warm-up, clipping and seed; intervals are mapped by `read_snapshots`, which needs the rows."""
    counts = _from_trainer(values, gpus, notes) if section(values, "training_args") else _from_runner(values, gpus, notes)
    if counts.updates is not None:
        notes.put("schedule.updates", counts.updates, "train_cfg.max_iters", Text(
            "{iterations} micro-batches at {count} per update", iterations=counts.updates * counts.micro_batches_per_update,
            count=counts.micro_batches_per_update))
    else:
        notes.put("schedule.epochs", counts.epochs or 1.0, "max_epochs")
    seed = section(values, "randomness").get("seed")
    if isinstance(seed, int) and 0 <= seed < 2**31:
        notes.put("schedule.seed", seed, "randomness.seed")
    return counts


def _from_runner(values: dict[str, Any], gpus: int, notes: Notes) -> Counts:
    """mmengine's runner: iterations are micro-batches."""
    loader, wrapper = section(values, "train_dataloader"), section(values, "optim_wrapper")
    rows = _positive(loader.get("batch_size"), 1)
    steps = _positive(wrapper.get("accumulative_counts"), 1)
    parallel = _positive(values.get("sequence_parallel_size"), 1)
    counts = _batch(rows, steps, gpus, parallel, notes)
    optimizer = section(wrapper, "optimizer")
    _read_optimizer(optimizer, notes)
    clip = section(wrapper, "clip_grad")
    norm = number(clip.get("max_norm"))
    notes.put("schedule.clip_norm", float(norm) if norm else 0.0, "optim_wrapper.clip_grad.max_norm")
    cfg = section(values, "train_cfg")
    epochs, iterations = number(cfg.get("max_epochs")), number(cfg.get("max_iters"))
    updates = max(1, math.ceil(iterations / steps)) if iterations and not epochs else None
    epochs = None if updates else float(epochs or number(values.get("max_epochs")) or 1)
    _read_rate_shape(values.get("param_scheduler"), epochs or (iterations or 0), number(optimizer.get("lr")), notes)
    return Counts(counts, steps, epochs, updates)


def _batch(rows: int, steps: int, gpus: int, parallel: int, notes: Notes) -> int:
    together = max(1, rows * steps * gpus // parallel)
    words = Text("{rows} per GPU x {steps} accumulated x {gpus} GPU", rows=rows, steps=steps, gpus=gpus)
    if parallel > 1:
        words = Text("{rows} per GPU x {steps} accumulated x {gpus} GPU / {parallel} that share a sequence", rows=rows, steps=steps,
                     gpus=gpus, parallel=parallel)
        notes.leave("sequence_parallel_size", Text(
            "one sequence is not spread over several GPUs here; recomputed activations save as much"))
    notes.put("schedule.effective_batch", together, "accumulative_counts", words)
    return together


def _from_trainer(values: dict[str, Any], gpus: int, notes: Notes) -> Counts:
    """Configs with `framework = 'huggingface'` hold the arguments of transformers' trainer, which counts updates."""
    args = section(values, "training_args")
    steps = _positive(args.get("gradient_accumulation_steps"), 1)
    together = _batch(_positive(args.get("per_device_train_batch_size"), 8), steps, gpus, 1, notes)
    _read_optimizer({"type": args.get("optim", "adamw_torch"), "lr": args.get("learning_rate", 5e-5),
                     "weight_decay": args.get("weight_decay", 0.0)}, notes)
    notes.put("schedule.clip_norm", float(number(args.get("max_grad_norm", 1.0)) or 0.0), "training_args.max_grad_norm")
    shape = str(args.get("lr_scheduler_type", "linear"))
    notes.put("schedule.shape", shape if shape in ("constant", "linear", "cosine") else "linear", "training_args.lr_scheduler_type",
              None if shape in ("constant", "linear", "cosine") else Text("{value} becomes linear", value=shape))
    if number(args.get("warmup_steps")):
        notes.put("schedule.warmup_updates", int(args["warmup_steps"]), "training_args.warmup_steps")
    elif number(args.get("warmup_ratio")):
        _put_warmup(float(args["warmup_ratio"]), "training_args.warmup_ratio", notes)
    if args.get("gradient_checkpointing") is True:
        notes.put("device.checkpointing", "on", "training_args.gradient_checkpointing")
    updates = _positive(args.get("max_steps"), 0) or None
    return Counts(together, 1, None if updates else float(number(args.get("num_train_epochs", 3)) or 3), updates)


def _positive(value: Any, default: int) -> int:
    found = number(value)
    return int(found) if found and found >= 1 else default


def _read_optimizer(optimizer: dict[str, Any], notes: Notes) -> None:
    rate = number(optimizer.get("lr"))
    if rate is not None and 1e-8 <= rate <= 1:
        notes.put("schedule.learning_rate", float(rate), "optim_wrapper.optimizer.lr")
    else:
        notes.leave("optim_wrapper.optimizer.lr", Text("no learning rate that can be read: {value}; the default is used",
                                                       value=shown(optimizer.get("lr"))))
    notes.put("schedule.weight_decay", float(number(optimizer.get("weight_decay")) or 0.0), "optim_wrapper.optimizer.weight_decay")
    named = optimizer.get("type")
    kind = named.last if isinstance(named, Reference) else str(named or "AdamW").rsplit(".", 1)[-1]
    if kind in _OTHER_ADAMW:
        notes.leave("optim_wrapper.optimizer.type", Text("{value} becomes AdamW with exact moments", value=kind))
    elif kind not in _ADAMW:
        notes.leave("optim_wrapper.optimizer.type", Text("{value} becomes AdamW, another optimizer: check the learning rate", value=kind))
    betas = optimizer.get("betas", _USUAL_BETAS)
    if isinstance(betas, list | tuple) and tuple(betas) != _USUAL_BETAS:
        notes.leave("optim_wrapper.optimizer.betas", Text("AdamW keeps its usual 0.9 and 0.999 here; the config has {value}",
                                                          value=shown(betas)))


def _read_rate_shape(schedulers: Any, length: float, rate: float | None, notes: Notes) -> None:
    """Warm-up and shape of the learning rate; `length` is in the unit of the schedulers, epochs or iterations."""
    entries = [entry for entry in (schedulers if isinstance(schedulers, list | tuple) else [schedulers]) if isinstance(entry, dict)]
    shape = "constant"
    for entry in entries:
        kind = kind_of(entry)
        if kind in ("LinearLR", "LinearParamScheduler") and float(number(entry.get("start_factor", 1 / 3)) or 0) < 1:
            begin, end = number(entry.get("begin", 0)) or 0, number(entry.get("end"))
            if end and length:
                _put_warmup((end - begin) / length, "param_scheduler.LinearLR.end", notes)
        elif kind == "CosineAnnealingLR":
            shape = "cosine"
            lowest = number(entry.get("eta_min")) or 0.0
            if lowest and rate:
                notes.leave("param_scheduler.CosineAnnealingLR.eta_min", Text(
                    "the learning rate falls to zero here, there to {share} % of its peak", share=round(100 * lowest / rate)))
        elif kind == "LinearLR":
            shape = "linear"
        elif kind not in ("ConstantLR", ""):
            notes.leave(f"param_scheduler.{kind}", Text("a learning rate over time that a recipe has not; constant is used"))
    notes.put("schedule.shape", shape, "param_scheduler")


def _put_warmup(share: float, key: str, notes: Notes) -> None:
    """Warm-up as a share of the run: in XTuner it counts micro-batches, and of a short run it may eat all."""
    if share <= 0:
        return
    kept = min(share, _LONGEST_WARMUP)
    notes.put("schedule.warmup_ratio", round(kept, 4), key, Text(
        "{share} % of the run, never more than a tenth of it; XTuner's warm-up may swallow a short run whole", share=f"{100 * share:g}"))


def read_snapshots(values: dict[str, Any], counts: Counts, updates: int | None, notes: Notes) -> None:
    """How many snapshots, and what became of the intervals.

    Args:
        values: of the config.
        counts: how the config counts.
        updates: of the whole run, when the rows are known.
        notes: where it goes.
    """
    hook, args = section(values, "default_hooks", "checkpoint"), section(values, "training_args")
    interval = number(hook.get("interval", args.get("save_steps")))
    if not interval or interval < 1:
        return
    if hook.get("by_epoch", bool(hook)) and not args:
        notes.leave("default_hooks.checkpoint.interval", Text(
            "a checkpoint every {count} epochs; {kept} snapshots along the way are kept instead", count=shown(interval),
            kept=_FEWEST_SNAPSHOTS))
        return
    every = interval / counts.micro_batches_per_update
    count = _FEWEST_SNAPSHOTS if updates is None else max(_FEWEST_SNAPSHOTS, min(1000, math.ceil(updates / every)))
    notes.put("snapshots.count", count, "default_hooks.checkpoint.interval", Text(
        "every {iterations} micro-batches are every {updates} updates; at least {count} are kept, so that there is something "
        "to choose from", iterations=int(interval), updates=f"{every:g}", count=_FEWEST_SNAPSHOTS))
    most = number(hook.get("max_keep_ckpts", args.get("save_total_limit")))
    if most and most > 0:
        notes.leave("default_hooks.checkpoint.max_keep_ckpts", Text(
            "XTuner keeps the last {count} and deletes the others; all are kept here", count=int(most)))
