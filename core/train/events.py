"""When a training saves a snapshot: at fixed updates, or when something has happened. No torch.

The way from learned to collapsed takes a few updates somewhere in the run; snapshots at equal distances may all miss it. By event, one is
saved when the taught answer has become likelier, or the gap has moved, since the last one. What has been decided follows from the looks on
record and the steps that were saved, so a resumed run decides as the uninterrupted one did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal["planned", "event", "even", "alert", "last"]


@dataclass(frozen=True)
class EventRule:
    """What counts as an event, in nats per token (docs/checkpoints.md).

    Attributes:
        fall: of the taught answers' loss since the last snapshot.
        move: of the gap, up or down.
        in_sight: nothing is an event before the taught answers' loss is below this: nobody would pick such a step.
        last_ones: when fewer snapshots than this are left to events, more must happen for one of them.
        kept_even: of the snapshots, the part that events leave to the updates still to come, so that a long rest is not without any.
    """

    fall: float = 0.15
    move: float = 0.05
    in_sight: float = 1.0
    last_ones: int = 4
    kept_even: float = 1 / 3


EVENTS = EventRule()


class SnapshotChoice:
    """Decides, update by update, whether to save; never more than `count` times, the last update always among them."""

    def __init__(self, updates: int, count: int, planned: Collection[int], by_event: bool, rule: EventRule = EVENTS) -> None:
        """Begin at the beginning.

        Args:
            updates: of the whole run.
            count: snapshots, the last one included.
            planned: the updates to save after where it does not go by events.
            by_event: whether it does.
            rule: what counts as an event.
        """
        self.updates, self.count, self.planned, self.by_event, self.rule = updates, min(count, updates), frozenset(planned), by_event, rule
        self._saved: list[int] = []
        self._at_save: dict[str, Any] | None = None
        self._look: dict[str, Any] | None = None

    def replay(self, saved: Sequence[int], looks: Sequence[dict[str, Any]]) -> None:
        """Take over where an earlier life of the run stood: the steps it had saved and the looks it had made until then."""
        for step in sorted(saved):
            self._look = next((look for look in reversed(looks) if look["update"] <= step), None)
            self.note_saved(step)
        self._look = looks[-1] if looks else None

    def note_look(self, look: dict[str, Any]) -> None:
        self._look = look

    def note_saved(self, step: int) -> None:
        self._saved.append(step)
        self._at_save = self._look

    def reason(self, update: int) -> Reason | None:
        """Why to save after `update`; None when not to."""
        if update == self.updates:
            return "last"
        if not self.by_event:
            return "planned" if update in self.planned else None
        left = self.count - 1 - len(self._saved)
        if left <= 0:
            return None
        for_events = left - round(self.rule.kept_even * (self.count - 1) * (self.updates - update) / self.updates)
        is_fresh = self._look is not None and self._look["update"] == update
        if is_fresh and for_events > 0 and self._moved() >= max(1.0, self.rule.last_ones / for_events):
            return "event"
        last = self._saved[-1] if self._saved else 0
        return "even" if update - last >= (self.updates - last) / (left + 1) else None

    def _moved(self) -> float:
        """How much has happened between the last snapshot and the last look, 1 for one event."""
        return events_between(self._at_save, self._look, self.rule)


def events_between(before: dict[str, Any] | None, now: dict[str, Any] | None, rule: EventRule = EVENTS) -> float:
    """How many events lie between two looks; 0 while the taught answers are out of sight, and endless when `before` is not there."""
    if now is None or now.get("target_nll") is None or now["target_nll"] > rule.in_sight:
        return 0.0
    if before is None or before.get("target_nll") is None:
        return float("inf")
    return max((before["target_nll"] - now["target_nll"]) / rule.fall, abs(now["gap"] - before["gap"]) / rule.move) + 1e-9
