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
_SAID = {
    "front": {"en": "No step beats these in both, learned and kept: {steps}.", "zh": "学会与保留两方面都没有别的步胜过这些步：{steps}。"},
    "decided": {"en": "  {question}\n    step {pick}: {answer}\n    step {step}: {other}",
                "zh": "  {question}\n    第 {pick} 步：{answer}\n    第 {step} 步：{other}"},
}


def print_scores(run: Run, title: str | None = None) -> None:
    """One line per step; the pick is marked."""
    verdict = run.verdict() or {"pick": None}
    pick = verdict["pick"]["step"] if verdict["pick"] else None
    has_own = any(score.get("own_passed") is not None for score in run.scores())
    titles = ["step", "learned", "loss", "gap", "spilled", "near", "fragments", "facts kept", *(["own"] if has_own else []), "score", ""]
    print_table(titles, [_score_row(score, pick, has_own) for score in run.scores()], title=title)


def _score_row(score: dict[str, Any], pick: int | None, has_own: bool) -> list[Any]:
    facts, loss, gap = (None if (value := score.get(name)) is None else f"{value:.2f}" for name in ("facts_kept", "target_nll", "gap"))
    own = [None if score.get("own_passed") is None else f"{score['own_passed']:.2f}"] if has_own else []
    return ["base" if score["step"] == 0 else str(score["step"]), f"{score['hits']}/{score['identity_probes']}", loss, gap,
            f"{score['leaks']}/{score['other_probes']}", score["near_leak"], score["fragments"], facts, *own, score["score"],
            "<- pick" if score["step"] == pick else ""]


def print_verdict(run: Run, language: str = "en") -> None:
    verdict = run.verdict()
    if verdict is None:
        say("No verdict yet.")
        return
    say(f"\n{_VERDICTS[verdict['verdict']].get(language, _VERDICTS[verdict['verdict']]['en'])}")
    spoken = "zh" if language == "zh" else "en"
    for key in ("reason", "before", "after", "runner_up_reason", "certainty"):
        if verdict.get(key):
            say(Text.from_json(verdict[key]).to(spoken))
    for note in verdict.get("notes", []):
        say(Text.from_json(note).to(spoken))
    if verdict.get("front"):
        say(_SAID["front"][spoken].format(steps=", ".join(map(str, verdict["front"]))))
    for entry in verdict.get("decided_by", []):
        say(_SAID["decided"][spoken].format(question=_short(entry["question"]), pick=verdict["rule_step"], step=entry["step"],
                                            answer=_short(entry["answer"]), other=_short(entry["other_answer"])))


def _short(text: str) -> str:
    """One line of at most 90 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:89] + "…"
