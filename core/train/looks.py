"""When to look in on a training: often enough to see it turn, and never for more than a set share of its time. No torch.

A look costs about half an update of the lesson, so looking at every update would cost half as much again as the training. Each update earns
a share of what it cost; a look spends. What is earned while nothing can have happened yet is kept for the updates where it matters.
"""

from __future__ import annotations

from typing import Any

from core.train.events import events_between

# Of the cost of the updates. Measured shares are some percent off on a processor, and 15 % is what is promised.
SHARE = 0.11
# More would only make a long record.
MOST_LOOKS = 120
# A training that has learned nothing yet does not collapse: the first look waits until the loss has fallen to this part ...
_FALLEN = 0.5
# ... or until so many looks have been earned.
_KEPT_LOOKS = 3.0


class LookPace:
    """Counts what updates earn and looks spend.

    On a processor both are counted in tokens read forward, so that two runs of a recipe look at the same updates; on a GPU in seconds,
    as there a short pass costs what launching it costs.
    """

    def __init__(self, updates: int, look_tokens: int, update_factor: float, in_seconds: bool) -> None:
        """Begin at the beginning.

        Args:
            updates: of the whole run.
            look_tokens: that a look reads.
            update_factor: what a token of an update costs, in tokens that are only read: 2 for an adapter, 3 for every weight.
            in_seconds: count seconds instead.
        """
        self.updates, self.look_tokens, self.update_factor, self.in_seconds = updates, look_tokens, update_factor, in_seconds
        self.credit = 0.0
        self._cost = 0.0 if in_seconds else float(look_tokens)
        self._losses: list[float] = []
        self._last: dict[str, Any] | None = None
        self._events_per_update = float("inf")

    def note_update(self, record: dict[str, Any]) -> None:
        """An update was made; `record` as in `metrics.jsonl`."""
        self.credit += SHARE * (record["seconds"] if self.in_seconds else self.update_factor * record["tokens"])
        self._losses.append(record["loss"])

    def note_look(self, look: dict[str, Any]) -> None:
        """A look was made; `look` as in `watch.jsonl`. The reading of the untrained model belongs to the start on a GPU, which warms up."""
        if look["update"] == 0 and self.in_seconds:
            return
        spent = look["seconds"] if self.in_seconds else look["tokens"]
        self.credit -= spent
        if self.in_seconds and not look.get("answers"):
            self._cost = spent
        if self._last is not None and look["update"] > self._last["update"] > 0:
            self._events_per_update = events_between(self._last, look) / (look["update"] - self._last["update"])
        self._last = look

    def can_pay(self, more: float = 0.0) -> bool:
        """Whether one more look, and `more` on top of it in looks, is earned."""
        return self.credit >= self._cost * (1 + more)

    def is_time(self, update: int) -> bool:
        """Whether to look after `update`, the last of those noted."""
        last = self._last["update"] if self._last else 0
        if update == self.updates:
            return True
        if not self.can_pay() or update - last < self.updates / MOST_LOOKS:
            return False
        if self.can_pay(_KEPT_LOOKS - 1):
            return True
        if last == 0:
            recent = self._losses[-2:]
            return sum(recent) / len(recent) <= _FALLEN * self._losses[0]
        return self._events_per_update * (update - last) >= 1
