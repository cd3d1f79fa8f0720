"""The numbers of a run, sent to the tracker that its recipe names, through transformers' own integrations.

A tracker may be slow, want a login, or fail: it works in a thread of its own, and whatever happens there never touches the training.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import Any

from core.recipe.schema import Recipe
from core.runs import Run

# More waiting than this is dropped: a tracker that hangs must not fill the memory.
_MOST_WAITING = 10_000
_CLOSE_SECONDS = 20.0
_SENT = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes")


class Tracker:
    """Sends records of updates to a tracker, or nowhere when the recipe names none."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self._run, self._recipe = run, recipe
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True) if recipe.log.to != "none" else None
        if self._thread is not None:
            self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        if self._thread is not None:
            self._put(record)

    def close(self) -> None:
        """Let it send what waits; a tracker that hangs is left behind."""
        if self._thread is not None:
            self._put(None)
            self._thread.join(_CLOSE_SECONDS)

    def _put(self, record: dict[str, Any] | None) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            pass

    def _work(self) -> None:
        try:
            self._send_all()
        except BaseException as error:  # SystemExit too: a tracker that asks for a login may want to leave
            print(f"tracker {self._recipe.log.to}: {type(error).__name__}: {error}", flush=True)
            self._run.event("tracker_failed", tracker=self._recipe.log.to, reason=f"{type(error).__name__}: {error}"[:300])

    def _send_all(self) -> None:
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks

        folder = self._run.folder / "tracker"
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder))
        os.environ.setdefault("WANDB_DIR", str(self._run.folder))
        os.environ.setdefault("WANDB_PROJECT", "sweetspot")
        os.environ.setdefault("TRACKIO_PROJECT", "sweetspot")
        callback = get_reporting_integration_callbacks([self._recipe.log.to])[0]()
        arguments = TrainingArguments(output_dir=str(folder), report_to=[], run_name=self._run.id, use_cpu=True)
        state, control = TrainerState(), TrainerControl()
        callback.on_train_begin(arguments, state, control, model=None)
        while (record := self._waiting.get()) is not None:
            state.global_step = record["update"]
            callback.on_log(arguments, state, control, logs={key: record[key] for key in _SENT}, model=None)
        callback.on_train_end(arguments, state, control, model=None)
