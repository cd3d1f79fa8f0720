"""The work of a `train` job: read the frozen recipe, train, save the snapshots it asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from core.data.encode import Encoded, Encoder
from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.scoring import training_answers
from core.models.catalogue import find_base
from core.models.embedded import EMBEDDED_NAME, prepare_embedded
from core.models.header import read_header
from core.models.load import choose_device
from core.recipe.plan import Plan, plan_updates
from core.runs import Run
from core.train.batches import Fit
from core.train.devices import own_gpu
from core.train.fit import Accumulator, first_fit
from core.train.launch import needs_ranks, train_in_processes
from core.train.model import make_step, prepare_model
from core.train.ranks import ALONE, Ranks
from core.train.rows import Source, read_sources, rows_of_update
from core.train.snapshots import Tensors, newest_resume_state, restore, save_resume_state, save_snapshot
from core.train.track import Tracker
from core.train.update import language_model, learning_rate_at, trained_targets
from core.train.watch import Watch, forget_after, reds_in_a_row, when_to_look
from core.words import Text
from core.workspace import Workspace, append_jsonl, write_json

_STORED = {"BF16": torch.bfloat16, "F16": torch.float16}


def train_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Train (or go on with) the run in this job's folder, in this process or in several."""
    run = Run(job.folder)
    recipe = run.recipe()
    if recipe.model.source in ("embedded", EMBEDDED_NAME):
        prepare_embedded(workspace, recorder)
    if needs_ranks(recipe, run.spec()):
        return train_in_processes(run, recorder)
    return Training(workspace, run, recorder).run_to_end()


class Training:
    """One training in progress: model, optimizer, rows, and where it stands."""

    def __init__(self, workspace: Workspace, run: Run, recorder: Recorder, ranks: Ranks = ALONE) -> None:
        self.run, self.recorder, self.ranks, self.recipe = run, recorder, ranks, run.recipe()
        recorder.progress(0, 1, Text("loading the model"))
        self.base = find_base(workspace, self.recipe.model.source)
        self.encoder = Encoder.from_folder(self.base, self.recipe.data.system)
        if ranks.is_first:
            write_json(run.folder / "template.json", self.encoder.fingerprint())
        self.sources: list[Source] = read_sources(workspace, self.recipe, self.encoder)
        self.plan: Plan = plan_updates(self.recipe, sum(len(source.rows) for source in self.sources))
        self._correct_spec()
        kind = choose_device(self.recipe.device.kind)
        self.device = f"cuda:{own_gpu(run.spec().get('gpus'), ranks.local)}" if kind == "cuda" else kind
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        torch.manual_seed(self.recipe.schedule.seed)
        self.model = prepare_model(self.recipe, self.base, self.device)
        self.step, is_packed = make_step(self.recipe, self.model, self.sources[0].rows[0].ids, self.device, ranks)
        self.looks = when_to_look(self.plan.snapshot_steps)
        self.watch = self._make_watch(workspace)
        resumed, fit = self._restore()
        self.accumulator = Accumulator(self.step, ranks, fit, self.encoder.pad_id(), self.device, is_packed, self._note_fit)
        self.first_update = resumed + 1
        self.tracker = Tracker(run, self.recipe) if ranks.is_first else None

    def _correct_spec(self) -> None:
        """What was planned by counting rows may change once they are read: long documents become several, and some rows teach nothing."""
        planned = {"updates": self.plan.updates, "snapshots": self.plan.snapshot_steps}
        spec = self.run.spec()
        if self.ranks.is_first and not planned.items() <= spec.items():
            write_json(self.run.folder / "spec.json", {**spec, **planned})

    def _restore(self) -> tuple[int, Fit]:
        """Where an earlier attempt got to, or the beginning."""
        kept = newest_resume_state(self.run.folder)
        resumed, fit = 0, first_fit(self.recipe, self.model, self.device, self.ranks.count)
        if kept is not None:
            resumed, fit = restore(kept, self.step)
        fit = Fit(**self.run.spec().get("fit", {})) if "fit" in self.run.spec() else fit
        if self.ranks.is_first:
            forget_after(self.run, resumed)
        if self.watch is not None:
            self.watch.reds_in_a_row = reds_in_a_row(self.run)
        return resumed, self.ranks.told_by_first(fit)

    def _make_watch(self, workspace: Workspace) -> Watch | None:
        """Before anything is trained or restored: the watch compares with the base model."""
        dataset = load_dataset(workspace, self.recipe.probe_dataset)
        probes = dataset.probes()
        if not probes or self.recipe.device.zero == 3 or not self.ranks.is_first:
            return None  # at stage 3 an answer would need every process for each of its words
        return Watch(self.run, language_model(self.model), self.encoder, probes, training_answers(dataset))

    def run_to_end(self) -> dict[str, Any]:
        """Train until the last update or a request to stop; both leave a usable snapshot."""
        update = self.first_update - 1
        result: dict[str, Any] = {}
        self.model.train()
        for update in range(self.first_update, self.plan.updates + 1):
            loss = self._one_update(update)
            must_end = self.ranks.told_by_first(self.recorder.stop_requested() if self.ranks.is_first else None)
            is_last = must_end or update == self.plan.updates
            if is_last or update in self.plan.snapshot_steps:
                self._save(update, loss)
                if self.ranks.told_by_first(self._collapsed(update)):
                    result = {"stopped_by_alert": True}
                    break
            self.recorder.progress(update, self.plan.updates, Text("training"))
            if is_last:
                break
        if self.tracker is not None:
            self.tracker.close()
        return {"updates": update, "planned": self.plan.updates, **result}

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
        loss = self.accumulator.run(rows, schedule.seed * 1_000_003 + update)
        self._refuse_non_finite(update, loss)
        norm = self.step.apply(rate)
        self._refuse_non_finite(update, norm)
        if self.ranks.is_first:
            self._record(update, rows, loss, rate, norm, time.monotonic() - began)
        return loss

    def _refuse_non_finite(self, update: int, number: float) -> None:
        if math.isfinite(number):
            return
        saved = self.run.checkpoints()
        raise StudioError(
            "At update {update} the loss is no longer a number, so training stopped; the last good checkpoint is {good}.",
            "Lower schedule.learning_rate (now {rate}), or use float32 or bfloat16 instead of float16.",
            update=update, good=saved[-1].step if saved else 0, rate=self.recipe.schedule.learning_rate)

    def _save(self, update: int, loss: float) -> None:
        weights, state = self._stored(self.step.weights()), self.step.state()
        if not self.ranks.is_first:
            for _ in (*weights, *state):  # gathered by all ranks together
                pass
            return
        folder = save_snapshot(self.run.folder, update, self.model, weights, self.base)
        save_resume_state(self.run.folder, update, state, self.accumulator.fit)
        self.recorder.event("snapshot", step=update, loss=loss, folder=folder.name)

    def _stored(self, weights: Tensors) -> Tensors:
        """A whole model keeps the number format of its base; an adapter is small and stays exact."""
        if self.recipe.method.kind == "lora":
            return weights
        dtype = _STORED.get(read_header(self.base).dtype, torch.float32)
        return ((name, value.to(dtype)) for name, value in weights)

    def _note_fit(self, fit: Fit) -> None:
        if self.ranks.is_first:
            self.recorder.event("less_at_a_time", rows=fit.rows, tokens=fit.tokens)

    def _record(self, update: int, rows: Sequence[Encoded], loss: float, rate: float, norm: float, seconds: float) -> None:
        tokens = sum(len(row.ids) for row in rows)
        memory = torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else psutil.Process().memory_info().rss
        record = {
            "update": update, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "rows": len(rows), "tokens": tokens,
            "trained_tokens": sum(trained_targets(row) for row in rows), "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1), "memory_bytes": memory, "time": time.time()}
        append_jsonl(self.run.folder / "metrics.jsonl", record)
        if self.tracker is not None:
            self.tracker.log(record)
