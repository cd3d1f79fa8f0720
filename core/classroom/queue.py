"""The fair queue of a class: one running job per student, round robin, nobody in charge but the teacher.

    queue/entries/<student>~<job>.json   one per job that waits for a device or holds one, locked by its worker for as long
    queue/served/<student>               its change time is when one of the student's jobs last got a device
    queue/orders.json                    what the teacher said: paused, and whose jobs come first
    queue/durations.jsonl                how long jobs of each kind held their device

Workers wait by themselves, as in `core.jobs.queue`: each puts everybody who waits in the same order, and the first takes the device.
The kernel takes the lock from a worker that ends, however it ends, so an entry without a lock is nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel

from core.classroom.place import TEACHER, class_root, member_of, student_workspace
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.once import one_at_a_time
from core.jobs.turns import after
from core.workspace import Workspace, append_jsonl, read_json, read_jsonl, write_json

_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.3, 3.0
_DURATIONS_LOOKED_AT = 30
_LEFT_BEHIND_SECONDS = 60.0  # a worker that has just made its entry locks it at once


class Orders(BaseModel):
    """What the teacher said. `first`: entries that come before all others, in this order."""

    paused: bool = False
    first: list[str] = []


class Entry(BaseModel):
    """A job that waits or holds a device. Times are seconds since the epoch; `started` is None while it waits."""

    member: str
    job: str
    kind: str
    device: str
    asked: float
    started: float | None = None

    @property
    def key(self) -> str:
        return f"{self.member}~{self.job}"

    @property
    def parts(self) -> set[str]:
        return set(self.device.split(","))


@dataclass(frozen=True)
class ClassQueue:
    """The queue of the class in `root`."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "queue"

    def orders(self) -> Orders:
        try:
            return Orders.model_validate(read_json(self.folder / "orders.json"))
        except (OSError, ValueError):
            return Orders()

    def pause(self, paused: bool) -> None:
        """Let no further job begin, or let them again; those that run go on."""
        self._order(lambda orders: orders.model_copy(update={"paused": paused}))

    def put_first(self, key: str) -> None:
        """Let this job be the next to begin."""
        self._order(lambda orders: orders.model_copy(update={"first": [key, *(other for other in orders.first if other != key)]}))

    def put_last(self, key: str) -> None:
        """Let everybody who waits now go before this job."""
        others = [entry.key for entry in self.waiting() if entry.key != key]
        self._order(lambda orders: orders.model_copy(update={"first": [*others, key]}))

    def _order(self, change: Callable[[Orders], Orders]) -> None:
        self.folder.mkdir(exist_ok=True)
        with one_at_a_time(Workspace(self.root), "queue"):
            known = {entry.key for entry in self.entries()}
            changed = change(self.orders())
            kept = [key for key in changed.first if key in known]  # whoever has ended needs no place
            write_json(self.folder / "orders.json", changed.model_copy(update={"first": kept}).model_dump())

    def entries(self) -> list[Entry]:
        """Everybody who waits or runs; entries of dead workers are left out."""
        found = []
        for path in sorted((self.folder / "entries").glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                if _is_locked(path):
                    found.append(Entry.model_validate(read_json(path)))
        return found

    def waiting(self) -> list[Entry]:
        """Those that wait, in the order in which they will begin."""
        entries = self.entries()
        return fair_order(entries, self.last_served(entries), self.orders().first)

    def last_served(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Member -> when one of their jobs last got a device."""
        served = {}
        for member in {entry.member for entry in entries}:
            with contextlib.suppress(OSError):
                served[member] = (self.folder / "served" / member).stat().st_mtime
        return served

    def expected_starts(self, now: float | None = None) -> dict[str, float | None]:
        """Entry -> seconds until it is expected to begin; None when it cannot be told.

        Each job is taken to last as long as the middle one of its kind has lasted in this class.
        """
        entries = self.entries()
        order = fair_order(entries, self.last_served(entries), self.orders().first)
        return expected_starts(entries, order, self._usual_seconds(), time.time() if now is None else now)

    def _usual_seconds(self) -> dict[str, float]:
        """Kind of job -> median seconds that it held a device."""
        seconds: dict[str, list[float]] = {}
        for record in read_jsonl(self.folder / "durations.jsonl"):
            seconds.setdefault(str(record["kind"]), []).append(float(record["seconds"]))
        return {kind: statistics.median(values[-_DURATIONS_LOOKED_AT:]) for kind, values in seconds.items()}

    @contextmanager
    def take_turn(self, job: Job, member: str, try_devices: Callable[[], bool], is_cancelled: Callable[[], bool]) -> Iterator[bool]:
        """Wait for the job's turn, hold it for the block. Yields False when cancelled while waiting.

        Args:
            try_devices: takes the locks of the student and of the devices, all or none; called when it is this job's turn.
        """
        state = job.state()
        entry = Entry(member=member, job=job.id, kind=state.kind, device=state.device, asked=state.turn)
        path = self.folder / "entries" / f"{entry.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        with path.open("w", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            _write(stream, entry)
            try:
                if not self._wait(entry, try_devices, is_cancelled):
                    yield False
                    return
                entry = entry.model_copy(update={"started": time.time()})
                _write(stream, entry)
                self._note_served(member)
                began = time.monotonic()
                yield True
                with contextlib.suppress(StudioError, OSError):  # a full disk must not undo the work that is done
                    append_jsonl(self.folder / "durations.jsonl", {"kind": entry.kind, "seconds": time.monotonic() - began})
            finally:
                path.unlink(missing_ok=True)

    def _note_served(self, member: str) -> None:
        """The last in the circle from now on, even where the clock was set back behind the turns of others."""
        folder = self.folder / "served"
        folder.mkdir(exist_ok=True)
        with one_at_a_time(Workspace(self.root), "served"):
            now = after(max((path.stat().st_mtime for path in folder.iterdir()), default=0.0))
            (folder / member).touch()
            os.utime(folder / member, (now, now))

    def _sweep(self) -> None:
        """Remove what killed workers left."""
        for path in (self.folder / "entries").glob("*.json"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS and not _is_locked(path):
                    path.unlink()

    def _wait(self, entry: Entry, try_devices: Callable[[], bool], is_cancelled: Callable[[], bool]) -> bool:
        while not is_cancelled():
            entries, orders = self.entries(), self.orders()
            order = fair_order(entries, self.last_served(entries), orders.first)
            place = next((number for number, other in enumerate(order) if other.key == entry.key), len(order))
            busy = {other.member for other in entries if other.started is not None}
            is_turn = not orders.paused and entry.member not in busy and not any(
                other.parts & entry.parts and other.member not in busy for other in order[:place])
            if is_turn and try_devices():
                return True
            # Thirty workers that all look three times a second would take a core; those far behind look less often.
            time.sleep(min(_LONGEST_POLL_SECONDS, _POLL_SECONDS * (1 + place)))
        return False


def fair_order(entries: Sequence[Entry], served: Mapping[str, float], first: Sequence[str] = ()) -> list[Entry]:
    """Those that wait, in the order in which they begin.

    First whom the teacher put first. Then in turns: next is always the student who has gone without a device for longest (who never had
    one: whose job waits for longest), with their oldest job; they are then the last in the circle. Who has a job running comes after all
    others, because one student's jobs run one after another.
    """
    waiting = sorted((entry for entry in entries if entry.started is None), key=lambda entry: (entry.asked, entry.key))
    busy = {entry.member for entry in entries if entry.started is not None}
    by_key = {entry.key: entry for entry in waiting}
    order = [by_key[key] for key in first if key in by_key]
    left = [entry for entry in waiting if entry.key not in set(first)]
    turns = {member: (1, served.get(member, 0.0)) if member in busy else (0, served.get(member, 0.0))
             for member in {entry.member for entry in waiting}}
    for number, entry in enumerate(order):
        turns[entry.member] = (2, float(number))
    while left:
        entry = min(left, key=lambda entry: (turns[entry.member], entry.asked, entry.key))
        left.remove(entry)
        turns[entry.member] = (2, float(len(order)))
        order.append(entry)
    return order


def expected_starts(entries: Sequence[Entry], order: Sequence[Entry], usual_seconds: Mapping[str, float],
                    now: float) -> dict[str, float | None]:
    """Entry -> seconds until it begins, when jobs last as long as usual for their kind; None behind one of which that is not known."""
    free: dict[str, float | None] = {}  # device -> seconds until it is free
    student_free: dict[str, float | None] = {}
    for entry in entries:
        if entry.started is not None:
            usual = usual_seconds.get(entry.kind)
            left = None if usual is None else min(usual, max(0.0, usual - (now - entry.started)))  # the clock may have been set back
            student_free[entry.member] = left
            free |= dict.fromkeys(entry.parts, left)
    starts: dict[str, float | None] = {}
    for entry in order:
        waits = [*(free.get(part, 0.0) for part in entry.parts), student_free.get(entry.member, 0.0)]
        known = [wait for wait in waits if wait is not None]
        start = max(known) if len(known) == len(waits) else None
        usual = usual_seconds.get(entry.kind)
        end = None if start is None or usual is None else start + usual
        starts[entry.key] = start
        student_free[entry.member] = end
        free |= dict.fromkeys(entry.parts, end)
    return starts


def queue_of(workspace: Workspace) -> ClassQueue | None:
    """The queue of the class this workspace is part of; None outside a class."""
    root = class_root(workspace)
    return None if root is None else ClassQueue(root)


def job_of(home: Workspace, entry: Entry) -> Job:
    """The job of an entry in the queue of the class in `home`."""
    workspace = home if entry.member == TEACHER else student_workspace(home, entry.member)
    folder = workspace.runs / entry.job
    return Job(folder if folder.exists() else workspace.jobs / entry.job)


@dataclass(frozen=True)
class Place:
    """Where a student's job stands: how many begin before it, in how many seconds it is expected to, whether the teacher has paused."""

    before: int
    seconds: float | None
    is_paused: bool


def place_in_queue(workspace: Workspace, job: Job) -> Place | None:
    """What a student is told of the queue: a number and a time, nothing about others. None when the job does not wait in one."""
    queue = queue_of(workspace)
    if queue is None:
        return None
    order, key = [entry.key for entry in queue.waiting()], f"{member_of(workspace)}~{job.id}"
    if key not in order:
        return None
    return Place(order.index(key), queue.expected_starts().get(key), queue.orders().paused)


def _write(stream: TextIO, entry: Entry) -> None:
    """In place of the old words: a new file would have no lock."""
    stream.seek(0)
    stream.write(json.dumps(entry.model_dump()))
    stream.truncate()
    stream.flush()


def _is_locked(path: Path) -> bool:
    with path.open("r", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
