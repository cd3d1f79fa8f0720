"""How many probes of each kind a model is asked, and which: the one place that says so. No torch.

All probes of a dataset are the *full* set. The *quick* set is a part of it: of each kind in each language the first ones, so a quick
judging that is done again in full asks the rest only.

With 73 questions that are not about the identity, no leak at all means a true rate below 4.1 % (95 %, Clopper and Pearson 1934); with the
18 of the quick set, below 15.3 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.library import GENERAL, IDENTITY, NEAR

FORMAT, OWN = "format", "own"


@dataclass(frozen=True)
class ProbeCounts:
    """Probes per language.

    Attributes:
        identity: held-out wordings of what is taught.
        near: questions that only look like it; a third of all others, since they fail first.
        general: anything else, about half with a known short answer.
        format: general questions whose answer must have a form that can be checked.
    """

    identity: int
    near: int
    general: int
    format: int

    @property
    def others(self) -> int:
        """Questions that are not about what is taught."""
        return self.near + self.general + self.format

    def of(self, kind: str) -> int:
        """How many of one kind; a kind that is none of the four counts as general."""
        return {IDENTITY: self.identity, NEAR: self.near, FORMAT: self.format}.get(kind, self.general)


FULL = ProbeCounts(identity=24, near=25, general=40, format=8)
QUICK = ProbeCounts(identity=8, near=6, general=10, format=2)


def kind_of(probe: dict[str, Any]) -> str:
    """The kind that a probe is counted under: its group, or `format` for a general question whose answer must have a form."""
    return FORMAT if probe["group"] == GENERAL and "form" in probe else str(probe["group"])


def quick_set(probes: Sequence[dict[str, Any]], counts: ProbeCounts = QUICK) -> list[dict[str, Any]]:
    """The part of `probes` that a quick judging asks: the first of each kind in each language, in their order; the user's own stay all.

    It depends on the order of the probes only, so the same probes are asked of every checkpoint and every time.
    """
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for probe in probes:
        stratum = (kind_of(probe), probe.get("lang", ""))
        seen[stratum] += 1
        if stratum[0] == OWN or seen[stratum] <= counts.of(stratum[0]):
            chosen.append(probe)
    return chosen
