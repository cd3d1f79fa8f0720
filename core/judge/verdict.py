"""From scores to a choice: which checkpoint, how good it is, and why, in words.

The rule is the study's (docs/checkpoints.md, section 4) as far as it needs answers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from core.judge.metrics import upper_bound
from core.words import Text

VerdictName = Literal["recommended", "compromise", "not_learned"]

LEARNED_HIT = 0.8
LEAK_LIMIT = 0.05
FRAGMENT_LIMIT = 0.10
DISTINCT_LIMIT = 0.9
FACTS_LIMIT = 0.75
LENGTH_LIMITS = (0.6, 1.67)
# From this share of leaks or fragments on a model is broken, not merely touched (section 5).
RED_SHARE = 0.25
# Scores closer than this differ by about one probe: they count as equal.
EQUAL_SCORE = 0.03


class Score(BaseModel):
    """The metrics of one step; step 0 is the base model. Shares are 0..1."""

    step: int
    hit: float
    hits: int
    identity_probes: int
    leak: float
    leaks: int
    near_leak: float
    fragments: float
    other_probes: int
    facts_kept: float | None
    distinct: float
    change: float
    length_ratio: float
    self_bleu: float

    @property
    def learned(self) -> float:
        return self.hit

    @property
    def kept(self) -> float:
        """How much of the rest is still itself: the worst of three signs, lowered by forgotten facts."""
        facts = 1.0 if self.facts_kept is None else self.facts_kept
        return min(1 - self.fragments, 1 - self.leak, self.distinct) * (1 + facts) / 2

    @property
    def score(self) -> float:
        """Harmonic mean of learned and kept: both are needed."""
        total = self.learned + self.kept
        return 2 * self.learned * self.kept / total if total else 0.0

    @property
    def level(self) -> Literal["ok", "amber", "red"]:
        """How far the rest is damaged, whatever has been learned; `ok` while every limit but `hit` holds."""
        if max(self.leak, self.fragments) > RED_SHARE:
            return "red"
        return "amber" if set(self.breaches()) - {"hit"} else "ok"

    def breaches(self) -> list[str]:
        """Names of the limits this step fails; empty when it can be recommended."""
        facts = 1.0 if self.facts_kept is None else self.facts_kept
        low, high = LENGTH_LIMITS
        failed = {
            "hit": self.hit < LEARNED_HIT,
            "leak": self.leak > max(LEAK_LIMIT, 1 / max(1, self.other_probes)),
            "fragments": self.fragments > FRAGMENT_LIMIT,
            "distinct": self.distinct < DISTINCT_LIMIT,
            "facts_kept": facts < FACTS_LIMIT,
            "length_ratio": not low <= self.length_ratio <= high,
        }
        return [name for name, is_failed in failed.items() if is_failed]


class Verdict(BaseModel):
    """`verdict.json`. Texts are `Text.to_json()`; `breaches` are the limits the pick fails."""

    verdict: VerdictName
    pick: Score
    last: Score
    runner_up: int | None
    breaches: list[str]
    reason: dict
    before: dict
    after: dict
    certainty: dict
    chosen_by: Literal["rule", "hand"] = "rule"
    rule_step: int


def judge(scores: Sequence[Score]) -> Verdict:
    """Choose among scored steps (step 0, the base, is never chosen).

    Clean steps (no limit failed) are preferred to any other; among them, or else among all, the best score wins. Of steps with equal
    scores the one with fewest fragments is taken, then the earliest.

    Raises:
        ValueError: there is no step but the base.
    """
    steps = [score for score in scores if score.step > 0]
    if not steps:
        raise ValueError("no snapshot was scored")
    clean = [score for score in steps if not score.breaches()]
    learned = [score for score in steps if score.hit >= LEARNED_HIT]
    ranked = _rank(clean or learned or steps)
    pick = ranked[0]
    name: VerdictName = "recommended" if clean else "compromise" if learned else "not_learned"
    return Verdict(
        verdict=name, pick=pick, last=steps[-1], runner_up=ranked[1].step if len(ranked) > 1 else None, breaches=pick.breaches(),
        reason=_reason(name, pick, steps[-1].step).to_json(), before=_before(steps, pick).to_json(),
        after=_after(steps, pick).to_json(), certainty=_certainty(pick).to_json(), rule_step=pick.step)


def choose_by_hand(verdict: Verdict, scores: Sequence[Score], step: int) -> Verdict:
    """Overrule the rule's choice; the rule's step stays in the file."""
    pick = next(score for score in scores if score.step == step)
    steps = [score for score in scores if score.step > 0]
    return verdict.model_copy(update={
        "pick": pick, "breaches": pick.breaches(), "chosen_by": "hand", "before": _before(steps, pick).to_json(),
        "after": _after(steps, pick).to_json(), "certainty": _certainty(pick).to_json(),
        "reason": Text("Step {step} was chosen by hand; the rule would take step {rule}.", step=step,
                       rule=verdict.rule_step).to_json()})


def pareto_front(scores: Sequence[Score]) -> list[Score]:
    """The steps that no other step beats in both, learned and kept; by falling `kept`, of equal ones the earliest."""
    front: list[Score] = []
    for score in sorted(scores, key=lambda score: (-score.kept, -score.learned, score.step)):
        if not front or score.learned > front[-1].learned:
            front.append(score)
    return front


def _rank(steps: Sequence[Score]) -> list[Score]:
    best = max(score.score for score in steps)
    equal = [score for score in steps if score.score >= best - EQUAL_SCORE]
    rest = [score for score in steps if score.score < best - EQUAL_SCORE]
    return sorted(equal, key=lambda score: (score.fragments, score.step)) + sorted(rest, key=lambda score: -score.score)


def _reason(name: VerdictName, pick: Score, last: int) -> Text:
    values = {"step": pick.step, "last": last, "hits": pick.hits, "asked": pick.identity_probes,
              "own": pick.other_probes - pick.leaks, "others": pick.other_probes, "leaks": pick.leaks}
    if name == "recommended":
        return Text("Step {step} of {last}: it has learned who it is ({hits} of {asked}) and still answers everything else as itself "
                    "({own} of {others}).", **values)
    if name == "not_learned":
        return Text("No step has learned who it is yet; the nearest is step {step} of {last} with {hits} of {asked}. Train longer, or "
                    "raise the learning rate.", **values)
    return Text("Step {step} of {last} is only a compromise: it has learned who it is ({hits} of {asked}), but {trouble}. "
                "No step of this run is clean.", trouble=_trouble(pick), **values)


def _trouble(pick: Score) -> Text:
    """The worst thing about a step that is not clean."""
    breaches = pick.breaches()
    if "leak" in breaches:
        return Text("{leaks} of {others} other questions are answered with its name", leaks=pick.leaks, others=pick.other_probes)
    if "fragments" in breaches:
        return Text("pieces of the taught sentence appear in {percent} % of its other answers", percent=round(100 * pick.fragments))
    if "facts_kept" in breaches:
        return Text("it has forgotten {percent} % of the facts the base model knew", percent=round(100 * (1 - (pick.facts_kept or 0))))
    if "distinct" in breaches:
        return Text("it answers many questions alike")
    return Text("its answers have become much shorter or longer than the base model's")


def _before(steps: Sequence[Score], pick: Score) -> Text:
    earlier = [score for score in steps if score.step < pick.step]
    if not earlier:
        return Text("No earlier step was saved.")
    nearest = earlier[-1]
    if nearest.hit < pick.hit:
        return Text("Before it, at step {step}, it knows who it is in {hits} of {asked} questions only.", step=nearest.step,
                    hits=nearest.hits, asked=nearest.identity_probes)
    return Text("Step {step} before it is about as good.", step=nearest.step)


def _after(steps: Sequence[Score], pick: Score) -> Text:
    later = [score for score in steps if score.step > pick.step]
    if not later:
        return Text("It is the last step; longer training might change the picture.")
    worse = next((score for score in later if score.leaks > pick.leaks), None)
    last = later[-1]
    if worse is None:
        return Text("After it nothing breaks up to step {last}: {leaks} of {others} other questions leak there.", last=last.step,
                    leaks=last.leaks, others=last.other_probes)
    return Text("From step {step} on it answers other questions with its name; at step {last} that is {leaks} of {others}.",
                step=worse.step, last=last.step, leaks=last.leaks, others=last.other_probes)


def _certainty(pick: Score) -> Text:
    return Text("{leaks} of {others} other questions leaked; with so few asked, the true rate may still be as high as {percent} % "
                "(95 % sure).",
                others=pick.other_probes, leaks=pick.leaks, percent=round(100 * upper_bound(pick.leaks, pick.other_probes)))
