"""One thing to know about a recipe before it is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.words import Text


@dataclass(frozen=True)
class Finding:
    """One thing to know before the start.

    Attributes:
        code: its name, the same in every language: `no_gpu`.
        level: `error` or `warning`.
        text: what is wrong, with the numbers.
        fix: the way out.
        field: the recipe field that decides it; empty when none does.
    """

    code: str
    level: Literal["error", "warning"]
    text: Text
    fix: Text
    field: str = ""
