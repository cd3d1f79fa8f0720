"""From scores to `verdict.json`: what the rule takes, or a hand, with the reasons in words.

The rule itself, with its thresholds, is in `core.judge.rule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from core.judge import reasons
from core.judge.confidence import Confidence
from core.judge.rule import RULE, Rule, Score, VerdictName, choose_step
from core.judge.rule import pareto_front as pareto_front
from core.judge.taught import Kind


class Deciding(BaseModel):
    """A question that the pick and another step answer differently enough to decide between them.

    Attributes:
        probe: its id.
        step: the other step.
        reading: how the pick's answer reads (see `core.judge.scoring.classify`).
        other_reading: how the other's does.
    """

    probe: str
    question: str
    step: int
    reading: str
    other_reading: str
    answer: str
    other_answer: str


class Verdict(BaseModel):
    """`verdict.json`. Texts are `Text.to_json()`; fields with a default are missing in files of older versions.

    Attributes:
        pick: the chosen step.
        last: the last step.
        runner_up: what the rule would take if the pick were not there.
        breaches: the limits that the pick fails.
        chosen_by: the rule, or a hand that overruled it.
        rule_step: what the rule takes; stays when a hand chooses.
        rule_reason: its reason; stays too.
        front: steps that no other beats in both, learned and kept.
        decided_by: the answers that decided.
        quick: only some of the probes were asked.
    """

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
    rule_reason: dict | None = None
    runner_up_reason: dict | None = None
    confidence: Confidence | None = None
    front: list[int] = []
    decided_by: list[Deciding] = []
    kind: Kind = "identity"
    quick: bool = False
    notes: list[dict] = []


def judge(scores: Sequence[Score], rule: Rule = RULE, **known: Any) -> Verdict:
    """Choose among scored steps (step 0, the base, is never chosen) and say why.

    Args:
        scores: ascending.
        rule: the thresholds.
        known: further fields of the verdict: `kind`, `confidence`, `quick`, `notes`.

    Raises:
        ValueError: there is no step but the base.
    """
    steps = [score for score in scores if score.step > 0]
    chosen = choose_step(steps, rule)
    if chosen is None:
        raise ValueError("no snapshot was scored")
    pick, name = chosen
    second = choose_step(steps, rule, [pick.step])
    why = reasons.reason(name, pick, steps[-1].step, known.get("kind", "identity")).to_json()
    return Verdict(
        verdict=name, pick=pick, last=steps[-1], runner_up=second[0].step if second else None, breaches=pick.breaches(rule), reason=why,
        rule_reason=why, before=reasons.before(steps, pick).to_json(), after=reasons.after(steps, pick).to_json(),
        runner_up_reason=reasons.runner_up_reason(pick, second[0], rule).to_json() if second else None, rule_step=pick.step,
        certainty=reasons.certainty(pick, known.get("confidence")).to_json(), front=[score.step for score in pareto_front(steps)], **known)


def choose_by_hand(verdict: Verdict, scores: Sequence[Score], step: int) -> Verdict:
    """Overrule the rule's choice; the rule's step and its reason stay in the file."""
    pick = next(score for score in scores if score.step == step)
    steps = [score for score in scores if score.step > 0]
    return verdict.model_copy(update={
        "pick": pick, "breaches": pick.breaches(), "chosen_by": "hand", "before": reasons.before(steps, pick).to_json(),
        "after": reasons.after(steps, pick).to_json(), "certainty": reasons.certainty(pick).to_json(),
        "reason": reasons.by_hand(step, verdict.rule_step).to_json()})
