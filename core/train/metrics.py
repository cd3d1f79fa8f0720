"""Reading what a training wrote about itself: `metrics.jsonl` and `watch.jsonl`, as they grow. No torch.

A page looks every two seconds at files that may hold a hundred thousand lines, so a look reads only what is new, and a curve is thinned
before it is drawn.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs import Run
from core.train.alerts import LEVELS, Level, level_of

# More points than a chart has pixels only cost time.
POINTS_PER_LINE = 1000
# The end of a file that must still be the same for reading to go on after it.
_OVERLAP_BYTES = 64


class GrowingRecords:
    """The records of one JSON-lines file, by update; a look reads what was appended since the last one.

    A resumed training rewrites its file without the updates it repeats; the reader notices and starts over. Safe between threads, so
    that all sessions of a server may share one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._file = 0
        self._offset = 0
        self._last_bytes = b""
        self._by_update: dict[int, dict[str, Any]] = {}
        self._is_sorted = True

    def read(self) -> list[dict[str, Any]]:
        """All records so far, by ascending update; of two records of one update the later counts."""
        with self._lock:
            self._read_new()
            if not self._is_sorted:
                self._by_update = dict(sorted(self._by_update.items()))
                self._is_sorted = True
            return list(self._by_update.values())

    def _read_new(self) -> None:
        try:
            with self.path.open("rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                if file != self._file:
                    self._forget()
                    self._file = file
                stream.seek(max(0, self._offset - len(self._last_bytes)))
                if stream.read(len(self._last_bytes)) != self._last_bytes:
                    self._forget()
                    self._file = file
                    stream.seek(0)
                self._take(stream.read())
        except FileNotFoundError:
            self._forget()

    def _take(self, data: bytes) -> None:
        """Records of the whole lines in `data`; a half last line stays for the next look."""
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                update = int(record["update"])
            except (ValueError, TypeError, KeyError):
                continue  # the half line of a writer that was killed
            self._is_sorted = self._is_sorted and (not self._by_update or update > next(reversed(self._by_update)))
            self._by_update[update] = record
        self._offset += len(whole)
        self._last_bytes = (self._last_bytes + whole)[-_OVERLAP_BYTES:]


def series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Updates and values of one measure; records without it are left out."""
    found = [(record["update"], record[key]) for record in records if record.get(key) is not None]
    return [update for update, _ in found], [float(value) for _, value in found]


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, section 3), so that it begins at the first value.

    Args:
        values: in order.
        weight: 0 leaves them as they are; 0.9 averages over about ten.
    """
    if weight <= 0:
        return list(values)
    smoothed, average, known = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        known = weight * known + (1 - weight)
        smoothed.append(average / known)
    return smoothed


def thin(x: Sequence[float], y: Sequence[float], limit: int = POINTS_PER_LINE) -> tuple[list[float], list[float]]:
    """At most `limit` points of a line that looks the same: of each stretch its lowest and its highest point, and both ends.

    Every n-th point would hide a single spike, which is what one looks for in a loss.
    """
    if len(x) <= limit:
        return list(x), list(y)
    stretches = (limit - 2) // 2
    kept = {0, len(x) - 1}
    for index in range(stretches):
        begin, end = index * len(x) // stretches, (index + 1) * len(x) // stretches
        kept.add(min(range(begin, end), key=y.__getitem__))
        kept.add(max(range(begin, end), key=y.__getitem__))
    order = sorted(kept)
    return [x[index] for index in order], [y[index] for index in order]


@dataclass(frozen=True)
class Alert:
    """The model began to answer everything alike.

    Attributes:
        level: the worst level seen, amber or red.
        since: the first update that was not ok.
        update: the first update of the worst level.
        hijack: share of other questions, 0..1, that began with the taught sentence at that update.
        gap: by how much the taught sentence was likelier behind its own questions than behind others, nats per token; None where it
            did not decide.
    """

    level: Level
    since: int
    update: int
    hijack: float
    gap: float | None = None


def find_alert(looks: Sequence[dict[str, Any]]) -> Alert | None:
    """What the watch has to say aloud; None while all is well."""
    bad = [look for look in looks if look["level"] != "ok"]
    if not bad:
        return None
    worst = max(bad, key=lambda look: LEVELS.index(look["level"]))  # the first of the worst
    is_by_gap = level_of(worst.get("target_nll"), worst.get("gap"), []) == worst["level"]
    return Alert(worst["level"], bad[0]["update"], worst["update"], worst["hijack"], worst["gap"] if is_by_gap else None)


@dataclass(frozen=True)
class WatchCost:
    """What looking in has cost so far: how many looks, their seconds, and these as a share of the updates' own seconds."""

    looks: int
    seconds: float
    share: float


def watch_cost(records: Sequence[dict[str, Any]], looks: Sequence[dict[str, Any]]) -> WatchCost | None:
    """From `metrics.jsonl` and `watch.jsonl`; None before the first update, or without looks."""
    trained = sum(record["seconds"] for record in records)
    if not looks or not trained:
        return None
    last = records[-1]["update"]  # looks that a killed life made further on are not paid yet
    made = [look["seconds"] for look in looks if "seconds" in look and look["update"] <= last]
    return WatchCost(len(made), sum(made), sum(made) / trained)


def read_snapshots(run: Run) -> list[dict[str, Any]]:
    """Saved steps, ascending, each with its `step`, `loss` and `time`; what no event tells of is None."""
    told = {event["step"]: event for event in run.events() if event["event"] == "snapshot"}
    return [{"step": saved.step, "loss": told.get(saved.step, {}).get("loss"), "time": told.get(saved.step, {}).get("time"),
             "size_bytes": saved.size_bytes} for saved in run.checkpoints()]


def answer_history(looks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each watched question its `group` and its `answers` as (update, answer), one entry for each time the answer became another."""
    history: dict[str, dict[str, Any]] = {}
    for look in looks:
        for told in look.get("answers", []):
            entry = history.setdefault(told["question"], {"question": told["question"], "group": told["group"], "answers": []})
            if not entry["answers"] or entry["answers"][-1][1] != told["answer"]:
                entry["answers"].append((look["update"], told["answer"]))
    return list(history.values())
