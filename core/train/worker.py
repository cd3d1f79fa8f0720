"""The work of a `train` job: read the frozen recipe, train, save the snapshots it asks for."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from core.data.encode import Encoded, Encoder
from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.scoring import training_answers
from core.models.catalogue import find_base
from core.models.embedded import EMBEDDED_NAME, prepare_embedded
from core.models.load import choose_device, choose_dtype, linear_targets, load_model
from core.recipe.plan import Plan, plan_updates
from core.recipe.schema import Recipe
from core.runs import Run
from core.train.rows import Source, read_sources, rows_of_update
from core.train.snapshots import load_resume_state, save_resume_state, save_snapshot
from core.train.update import backward_update, learning_rate_at, trained_targets
from core.train.watch import Watch, forget_after, when_to_look
from core.words import Text
from core.workspace import Workspace, append_jsonl, write_json


def train_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Train (or go on with) the run in this job's folder."""
    return Training(workspace, Run(job.folder), recorder).run_to_end()


class Training:
    """One training in progress: model, optimizer, rows, and where it stands."""

    def __init__(self, workspace: Workspace, run: Run, recorder: Recorder) -> None:
        self.run, self.recorder, self.recipe = run, recorder, run.recipe()
        recorder.progress(0, 1, Text("loading the model"))
        if self.recipe.model.source in ("embedded", EMBEDDED_NAME):
            prepare_embedded(workspace, recorder)
        self.base = find_base(workspace, self.recipe.model.source)
        self.encoder = Encoder.from_folder(self.base, self.recipe.data.system)
        write_json(run.folder / "template.json", self.encoder.fingerprint())
        self.sources: list[Source] = read_sources(workspace, self.recipe, self.encoder)
        self.plan: Plan = plan_updates(self.recipe, sum(len(source.rows) for source in self.sources))
        self.device = choose_device(self.recipe.device.kind)
        torch.manual_seed(self.recipe.schedule.seed)
        self.model = prepare_model(self.recipe, self.base, self.device)
        self.parameters = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        schedule = self.recipe.schedule
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=schedule.learning_rate,
                                           weight_decay=schedule.weight_decay)
        self.watch = self._make_watch(workspace)
        self.looks = when_to_look(self.plan.snapshot_steps)
        resumed = load_resume_state(run.folder, self.parameters, self.optimizer)
        forget_after(run, resumed)
        self.first_update = resumed + 1

    def _make_watch(self, workspace: Workspace) -> Watch | None:
        """Before anything is trained or restored: the watch compares with the base model."""
        dataset = load_dataset(workspace, self.recipe.probe_dataset)
        probes = dataset.probes()
        if not probes:
            return None
        return Watch(self.run, _language_model(self.model), self.encoder, probes, training_answers(dataset))

    def run_to_end(self) -> dict[str, Any]:
        """Train until the last update or a request to stop; both leave a usable snapshot."""
        update = self.first_update - 1
        self.model.train()
        for update in range(self.first_update, self.plan.updates + 1):
            loss = self._one_update(update)
            is_last = self.recorder.stop_requested() or update == self.plan.updates
            if is_last or update in self.plan.snapshot_steps:
                self._save(update, loss)
                if self._collapsed(update):
                    return {"updates": update, "planned": self.plan.updates, "stopped_by_alert": True}
            self.recorder.progress(update, self.plan.updates, Text("training"))
            if is_last:
                break
        return {"updates": update, "planned": self.plan.updates}

    def _collapsed(self, update: int) -> bool:
        """Look in on the model; True when it was red twice in a row and the recipe says to stop then."""
        if self.watch is None or update not in self.looks:
            return False
        level = self.watch.look(update)
        if level != "ok":
            self.recorder.event("alert", step=update, level=level)
        return self.recipe.early_stop.on_alert == "stop" and self.watch.reds_in_a_row >= 2

    def _one_update(self, update: int) -> float:
        began = time.monotonic()
        schedule = self.recipe.schedule
        rows = rows_of_update(self.sources, schedule.effective_batch, schedule.seed, update)
        rate = learning_rate_at(update, self.plan.updates, self.plan.warmup_updates, schedule.learning_rate, schedule.shape)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(schedule.seed * 1_000_003 + update)  # dropout of update n is the same after a resume
        loss = backward_update(_language_model(self.model), rows, self.recipe.device.micro_batch, self.encoder.pad_id(), self.device)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), schedule.clip_norm or math.inf))
        self._refuse_non_finite(update, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._record(update, rows, loss, rate, norm, time.monotonic() - began)
        return loss

    def _refuse_non_finite(self, update: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        saved = self.run.checkpoints()
        raise StudioError(
            "At update {update} the loss is no longer a number, so training stopped; the last good checkpoint is {good}.",
            "Lower schedule.learning_rate (now {rate}), or use float32 or bfloat16 instead of float16.",
            update=update, good=saved[-1].step if saved else 0, rate=self.recipe.schedule.learning_rate)

    def _save(self, update: int, loss: float) -> None:
        folder = save_snapshot(self.run.folder, update, self.model, self.base)
        save_resume_state(self.run.folder, update, self.parameters, self.optimizer)
        self.recorder.event("snapshot", step=update, loss=loss, folder=folder.name)

    def _record(self, update: int, rows: list[Encoded], loss: float, rate: float, norm: float, seconds: float) -> None:
        tokens = sum(len(row.ids) for row in rows)
        memory = torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else psutil.Process().memory_info().rss
        append_jsonl(self.run.folder / "metrics.jsonl", {
            "update": update, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "rows": len(rows), "tokens": tokens,
            "trained_tokens": sum(trained_targets(row) for row in rows), "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1), "memory_bytes": memory, "time": time.time()})


def prepare_model(recipe: Recipe, base: Path, device: str) -> PreTrainedModel:
    """The base model, with a fresh adapter when the recipe asks for one; only what is trained requires gradients."""
    dtype = choose_dtype(recipe.model.dtype, device)
    model = load_model(base, dtype, device, recipe.model.quantization)
    method = recipe.method
    if recipe.device.checkpointing == "on":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if method.kind == "full":
        return model
    if recipe.model.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = linear_targets(model) if method.targets == "all-linear" else list(method.targets)
    config = LoraConfig(r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, target_modules=targets,
                        use_rslora=method.rslora, use_dora=method.dora, task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise StudioError("The adapter cannot be put on this model: {reason}.",
                          "Check method.targets; `all-linear` fits every model.", reason=str(error)[:200]) from error


def _language_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper; the adapter's layers stay in place."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
