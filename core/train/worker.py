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
from core.models.catalogue import find_base, find_local_base
from core.models.embedded import EMBEDDED_NAME, prepare_embedded
from core.models.header import read_header
from core.models.load import choose_device
from core.recipe.plan import Plan, plan_updates
from core.runs import Run
from core.train.alerts import is_news, reds_in_a_row
from core.train.batches import Fit
from core.train.devices import own_gpu
from core.train.events import Reason, SnapshotChoice
from core.train.fit import Accumulator, first_fit, is_out_of_memory, no_room_for_optimizer
from core.train.launch import needs_ranks, train_in_processes
from core.train.looks import SHARE, LookPace
from core.train.metrics import watch_cost
from core.train.model import make_step, prepare_model
from core.train.ranks import ALONE, Ranks
from core.train.rows import Source, read_sources, rows_of_update
from core.train.snapshots import Tensors, newest_resume_state, restore, save_resume_state, save_snapshot
from core.train.track import Tracker
from core.train.update import learning_rate_at, trained_targets
from core.train.watch import Watch, forget_after
from core.train.watched import choose_watched
from core.words import Text
from core.workspace import Workspace, append_jsonl, write_json

_STORED = {"BF16": torch.bfloat16, "F16": torch.float16}
# A look may cost as much as it earns in so many updates; a cheaper one reads fewer questions.
_UPDATES_PER_LOOK = 4


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
        is_here = find_local_base(workspace, self.recipe.model.source) is not None
        recorder.progress(0, 1, Text("loading the model") if is_here else Text("fetching the model"))
        self.base = find_base(workspace, self.recipe.model.source)
        self.encoder = Encoder.from_folder(self.base, self.recipe.data.system)
        if ranks.is_first:
            write_json(run.folder / "template.json", self.encoder.fingerprint())
        self.sources: list[Source] = read_sources(workspace, self.recipe, self.encoder)
        self.plan: Plan = plan_updates(self.recipe, sum(len(source.rows) for source in self.sources))
        self._correct_spec()
        kind = choose_device(self.recipe.device.kind)
        self.device = f"cuda:{own_gpu(run.spec().get('gpus'), ranks.local, ranks.count)}" if kind == "cuda" else kind
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        torch.manual_seed(self.recipe.schedule.seed)
        self.model = prepare_model(self.recipe, self.base, self.device)
        self.step, is_packed = make_step(self.recipe, self.model, self.sources[0].rows[0].ids, self.device, ranks)
        self.watch = self._make_watch(workspace)
        self.choice = SnapshotChoice(self.plan.updates, self.recipe.snapshots.count, self.plan.snapshot_steps,
                                     self.recipe.snapshots.spacing == "events")
        resumed, fit = self._restore()
        self.accumulator = Accumulator(self.step, ranks, fit, self.encoder.pad_id(), self.device, is_packed, self._note_fit)
        self.first_update = resumed + 1
        self.tracker = Tracker(run, self.recipe) if ranks.is_first else None
        self.last_record: dict[str, Any] = {}

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
            self.watch.replay(self.run.metrics())
        if self.ranks.is_first:
            self.choice.replay([saved.step for saved in self.run.checkpoints() if saved.step <= resumed],
                               self.watch.looks if self.watch else [])
        return resumed, self.ranks.told_by_first(fit)

    def _make_watch(self, workspace: Workspace) -> Watch | None:
        """Before anything is trained or restored: the watch compares with the base model."""
        if self.recipe.device.zero == 3 or not self.ranks.is_first or not self.encoder.template:
            return None  # at stage 3 every pass would need every process; without a chat template nothing can be asked
        schedule = self.recipe.schedule
        weights = sum(source.weight for source in self.sources)
        tokens = schedule.effective_batch * sum(
            source.weight / weights * sum(len(row.ids) for row in source.rows) / len(source.rows) for source in self.sources)
        # There and back, against there alone: nothing is computed for the frozen weights of an adapter's base on the way back.
        factor = (2.0 if self.recipe.method.kind == "lora" else 3.0) + (self.recipe.device.checkpointing == "on")
        dataset = load_dataset(workspace, self.recipe.probe_dataset)
        watched = choose_watched(dataset, self.encoder, _UPDATES_PER_LOOK * SHARE * factor * tokens)
        if watched is None:
            return None
        pace = LookPace(self.plan.updates, watched.tokens, factor, in_seconds=self.device.startswith("cuda"))
        return Watch(self.run, self.model, self.encoder, watched, pace, self.recipe.early_stop.on_alert == "stop")

    def run_to_end(self) -> dict[str, Any]:
        """Train until the last update or a request to stop; both leave a usable snapshot."""
        update = self.first_update - 1
        result: dict[str, Any] = {}
        self.model.train()
        for update in range(self.first_update, self.plan.updates + 1):
            loss = self._one_update(update)
            must_end = self.recorder.stop_requested() if self.ranks.is_first else None
            reason, is_collapsed, must_end = self.ranks.told_by_first((*self._look_in(update, bool(must_end)), must_end))
            if reason is not None:
                self._save(update, loss, reason)
            if is_collapsed:
                result = {"stopped_by_alert": True, "good": self.run.good_step()}
                break
            self.recorder.progress(update, self.plan.updates, Text("training"))
            if must_end:
                break
        if self.tracker is not None:
            self.tracker.close()
        return {"updates": update, "planned": self.plan.updates, **result, **self._cost_of_watching()}

    def _look_in(self, update: int, must_end: bool) -> tuple[Reason | None, bool]:
        """Why to save a snapshot now, if at all, and whether the run has collapsed and shall end."""
        if not self.ranks.is_first:
            return None, False
        look = self._look(update)
        if look is not None:
            self.choice.note_look(look)
            if look["level"] != "ok":
                self.recorder.event("alert", step=update, level=look["level"])
        reason: Reason | None = "last" if must_end else self.choice.reason(update)
        on_alert = self.recipe.early_stop.on_alert
        is_collapsed = on_alert == "stop" and look is not None and reds_in_a_row(self.watch.looks) >= 2
        if on_alert != "off" and (is_collapsed or (look is not None and is_news(self.watch.looks))):
            reason = reason or "alert"
        if reason is not None:
            self.choice.note_saved(update)
        return reason, is_collapsed

    def _look(self, update: int) -> dict[str, Any] | None:
        """A look, when it is time for one. One that does not fit beside the training is the last: nobody looks in from then on."""
        try:
            return self.watch.after_update(self.last_record) if self.watch is not None else None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.watch = None
            self.recorder.event("no_more_looks", step=update)
            print(f"no room to look in at update {update}; the training goes on without", flush=True)
            return None

    def _cost_of_watching(self) -> dict[str, Any]:
        """For the run's summary: how often it was looked in on, and what that took."""
        cost = watch_cost(self.run.metrics(), self.run.watch()) if self.watch is not None else None
        return {"watch": {"looks": cost.looks, "seconds": round(cost.seconds, 2), "share": round(cost.share, 4)}} if cost else {}

    def _one_update(self, update: int) -> float:
        began = time.monotonic()
        schedule = self.recipe.schedule
        rows = rows_of_update(self.sources, schedule.effective_batch, schedule.seed, update)
        rate = learning_rate_at(update, self.plan.updates, self.plan.warmup_updates, schedule.learning_rate, schedule.shape)
        loss = self.accumulator.run(rows, schedule.seed * 1_000_003 + update)
        if not math.isfinite(loss):
            raise self._no_number(update, update - 2)  # the weights that gave it, those after update - 1, are no good
        norm = self._apply(rate)
        if not math.isfinite(norm):
            raise self._no_number(update, update - 1)
        if self.ranks.is_first:
            self._record(update, rows, loss, rate, norm, time.monotonic() - began)
        return loss

    def _apply(self, rate: float) -> float:
        try:
            return self.step.apply(rate)
        except Exception as error:
            raise no_room_for_optimizer(self.device) if is_out_of_memory(error) else error from error

    def _no_number(self, update: int, last_good: int) -> StudioError:
        good = [saved.step for saved in self.run.checkpoints() if saved.step <= last_good]
        return StudioError(
            "At update {update} the loss or its gradient is no longer a number, so training stopped; the last good checkpoint is {good}.",
            "Lower schedule.learning_rate (now {rate}), or use float32 or bfloat16 instead of float16.",
            update=update, good=good[-1] if good else 0, rate=self.recipe.schedule.learning_rate)

    def _save(self, update: int, loss: float, reason: Reason) -> None:
        weights, state = self._stored(self.step.weights()), self.step.state()
        if not self.ranks.is_first:
            for _ in (*weights, *state):  # gathered by all ranks together
                pass
            return
        folder = save_snapshot(self.run.folder, update, self.model, weights, self.base)
        save_resume_state(self.run.folder, update, state, self.accumulator.fit)
        self.recorder.event("snapshot", step=update, loss=loss, folder=folder.name, reason=reason)

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
        self.last_record = record = {
            "update": update, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "rows": len(rows), "tokens": tokens,
            "trained_tokens": sum(trained_targets(row) for row in rows), "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1), "memory_bytes": memory, "time": time.time()}
        append_jsonl(self.run.folder / "metrics.jsonl", record)
        if self.tracker is not None:
            self.tracker.log(record)
