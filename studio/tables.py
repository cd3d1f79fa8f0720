"""Tables of scores and the verdict, as the command line shows them."""

from __future__ import annotations

from typing import Any

from core.runs import Run
from core.words import Text
from studio.terminal import print_table, say

_VERDICTS = {
    "recommended": {"en": "RECOMMENDED", "zh": "推荐"},
    "compromise": {"en": "COMPROMISE ONLY", "zh": "只能折中"},
    "not_learned": {"en": "NOT LEARNED YET", "zh": "还没学会"},
}


def print_scores(run: Run, title: str | None = None) -> None:
    """One line per step; the pick is marked."""
    verdict = run.verdict() or {"pick": None}
    pick = verdict["pick"]["step"] if verdict["pick"] else None
    rows = [_score_row(score, pick) for score in run.scores()]
    print_table(["step", "learned", "spilled", "near", "fragments", "facts kept", "changed", "score", ""], rows, title=title)


def _score_row(score: dict[str, Any], pick: int | None) -> list[Any]:
    facts = None if score["facts_kept"] is None else f"{score['facts_kept']:.2f}"
    return ["base" if score["step"] == 0 else str(score["step"]), f"{score['hits']}/{score['identity_probes']}",
            f"{score['leaks']}/{score['other_probes']}", score["near_leak"], score["fragments"], facts, score["change"], score["score"],
            "<- pick" if score["step"] == pick else ""]


def print_verdict(run: Run, language: str = "en") -> None:
    verdict = run.verdict()
    if verdict is None:
        say("No verdict yet.")
        return
    say(f"\n{_VERDICTS[verdict['verdict']].get(language, _VERDICTS[verdict['verdict']]['en'])}")
    for key in ("reason", "before", "after", "certainty"):
        say(Text.from_json(verdict[key]).to("zh" if language == "zh" else "en"))
