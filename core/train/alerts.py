"""When a training in progress is called sick: the alert's limits, in one place. No torch.

The limits are of the study in benchmarks/pick. A study that finds better ones passes its own `Limits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["ok", "amber", "red"]


@dataclass(frozen=True)
class Limits:
    """From where on a look is amber or red.

    Attributes:
        armed_below: the gap counts only once the loss of the taught answer is below this (nats per token): the gap of an untrained
            model is small and rises before it falls.
        amber_gap: a smaller gap, in nats per token, is amber.
        red_gap: a smaller one is red.
        amber_hijack: share of other questions, 0 to 1, whose first word has become that of a taught answer.
        red_hijack: the same for red.
        red_hijacked: red needs at least so many such questions, so that one of few does not decide.
    """

    armed_below: float = 0.5
    amber_gap: float = 0.50
    red_gap: float = 0.40
    amber_hijack: float = 0.15
    red_hijack: float = 0.20
    red_hijacked: int = 2


LIMITS = Limits()
LEVELS: tuple[Level, ...] = ("ok", "amber", "red")


def level_of(target_nll: float | None, gap: float | None, hijacked: Sequence[bool], limits: Limits = LIMITS) -> Level:
    """How sick a model looks.

    Args:
        target_nll: loss of the taught answers to their own questions, nats per token; None where nothing is taught.
        gap: loss of the taught answers under other questions minus `target_nll`; None as above.
        hijacked: for each watched other question, whether its first word has become that of a taught answer.
        limits: from where on.
    """
    share = sum(hijacked) / len(hijacked) if hijacked else 0.0
    is_armed = target_nll is not None and gap is not None and target_nll < limits.armed_below
    if (is_armed and gap < limits.red_gap) or (share >= limits.red_hijack and sum(hijacked) >= limits.red_hijacked):
        return "red"
    if (is_armed and gap < limits.amber_gap) or share >= limits.amber_hijack:
        return "amber"
    return "ok"


def reds_in_a_row(looks: Sequence[dict[str, Any]]) -> int:
    """How many of the last looks were red."""
    count = 0
    for look in reversed(looks):
        if look["level"] != "red":
            break
        count += 1
    return count


def is_news(looks: Sequence[dict[str, Any]]) -> bool:
    """Whether the last look is worse than every look before it."""
    levels = [LEVELS.index(look["level"]) for look in looks]
    return bool(levels) and levels[-1] > max(levels[:-1], default=0)
