"""The rule: which step to take, from its metrics alone. Pure; every threshold is a field of `Rule`; no torch, no words.

It is written for arrays, steps along the last axis, so that one call judges one run, or the same run under four hundred resamplings of
its probes, or a grid of thresholds. `docs/checkpoints.md` explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from pydantic import BaseModel

VerdictName = Literal["recommended", "compromise", "not_learned"]
VERDICTS: tuple[VerdictName, ...] = ("recommended", "compromise", "not_learned")
Level = Literal["ok", "amber", "red"]
# What compares equal on paper shall do so here too.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rule:
    """The thresholds. Shares are 0 to 1.

    Attributes:
        hit: learned from this share of identity (or held-out) probes on.
        leak: most other questions answered with what was taught; one question is always forgiven.
        fragments: most other answers with pieces of it.
        distinct: fewest different answers / answers.
        facts_kept: fewest facts kept, of those the base model knows.
        shortest: least length ratio.
        longest: largest length ratio.
        own_passed: fewest of the user's own checks passed.
        equal_score: scores closer than this are equal: about one probe.
        equal_gap: gaps closer than this, in nats per token, are equal.
        compromise_hit: where nothing is clean but something has learned, steps from this share on may be the compromise.
        red_share: from this share of leaks or fragments on a model is broken, not merely touched.
        collapsed_share: above this share of leaks or fragments a step answers everything alike and is no compromise, whatever it learned.
    """

    hit: float = 0.8
    leak: float = 0.05
    fragments: float = 0.10
    distinct: float = 0.9
    facts_kept: float = 0.75
    shortest: float = 0.6
    longest: float = 1.67
    own_passed: float = 0.8
    equal_score: float = 0.03
    equal_gap: float = 0.02
    compromise_hit: float = 0.8
    red_share: float = 0.25
    collapsed_share: float = 0.75


RULE = Rule()


@dataclass(frozen=True)
class Measures:
    """The metrics that the rule reads, as arrays of one shape (..., steps); NaN where a metric does not exist.

    Attributes:
        others: how many other questions were asked.
    """

    hit: np.ndarray
    leak: np.ndarray
    fragments: np.ndarray
    distinct: np.ndarray
    facts_kept: np.ndarray
    length_ratio: np.ndarray
    own_passed: np.ndarray
    target_nll: np.ndarray
    gap: np.ndarray
    perplexity_fall: np.ndarray
    others: int

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Measures:
        """Of one run: every array has shape (steps,)."""
        names = [field.name for field in fields(cls) if field.name != "others"]
        arrays = {name: np.array([np.nan if (value := getattr(score, name)) is None else value for score in scores], dtype=float)
                  for name in names}
        return cls(**arrays, others=max((score.other_probes for score in scores), default=0))


def learned(measures: Measures) -> np.ndarray:
    """L = (hit + exp(-target NLL)) / 2, 0 to 1: what it says, and how likely it finds it; hit alone where no likelihood was measured.

    Of documents L is the share of the base model's perplexity that is gone, nothing where it has risen: there is nothing to say.
    """
    likely = np.exp(-measures.target_nll)
    spoken = np.where(np.isnan(likely), measures.hit, (measures.hit + np.nan_to_num(likely)) / 2)
    return np.where(np.isnan(measures.perplexity_fall), spoken, np.maximum(0.0, measures.perplexity_fall))


def kept(measures: Measures) -> np.ndarray:
    """R = min(1 - fragments, 1 - leak, distinct) (1 + facts kept) / 2, 0 to 1: the worst of three signs, lowered by forgotten facts."""
    worst = np.minimum(np.minimum(1 - measures.fragments, 1 - measures.leak), measures.distinct)
    return worst * (1 + np.nan_to_num(measures.facts_kept, nan=1.0)) / 2


def balance(measures: Measures) -> np.ndarray:
    """S = 2 L R / (L + R), the harmonic mean: both are needed. 0 to 1."""
    both, either = learned(measures) * kept(measures), learned(measures) + kept(measures)
    return np.where(either > 0, 2 * both / np.where(either > 0, either, 1), 0.0)


def failures(measures: Measures, rule: Rule = RULE) -> dict[str, np.ndarray]:
    """For each limit, which steps fail it; a metric that does not exist fails nothing."""
    forgiven = max(rule.leak, 1 / max(1, measures.others))
    return {
        "hit": measures.hit < rule.hit - _ROUNDING,
        "leak": measures.leak > forgiven + _ROUNDING,
        "fragments": measures.fragments > rule.fragments + _ROUNDING,
        "distinct": measures.distinct < rule.distinct - _ROUNDING,
        "facts_kept": measures.facts_kept < rule.facts_kept - _ROUNDING,
        "length_ratio": (measures.length_ratio < rule.shortest) | (measures.length_ratio > rule.longest),
        "own_passed": measures.own_passed < rule.own_passed - _ROUNDING,
    }


@dataclass(frozen=True)
class Choice:
    """What the rule takes: indices along the last axis, and indices into VERDICTS; shape (...)."""

    pick: np.ndarray
    verdict: np.ndarray


def choose(measures: Measures, rule: Rule = RULE, out_of: np.ndarray | None = None) -> Choice:
    """Choose a step.

    Clean steps (no limit failed) come before steps that have merely learned without collapsing, those before all others. Among these the
    best balance S wins. Steps within `equal_score` of it are equal; of equals the widest gap wins, and of gaps within `equal_gap` the
    earliest step. Where gaps were not measured, the fewest fragments stand in for the widest gap.

    Args:
        measures: the steps, ascending, the base model not among them; last axis at least 1 long.
        rule: the thresholds.
        out_of: which steps may be chosen, boolean; all when None. At least one must be.
    """
    failed = failures(measures, rule)
    allowed = np.ones(measures.hit.shape, bool) if out_of is None else out_of
    clean = allowed & ~np.logical_or.reduce(list(failed.values()))
    able = allowed & ~failed["hit"]
    is_clean, is_able = clean.any(-1, keepdims=True), able.any(-1, keepdims=True)
    collapsed = np.maximum(measures.leak, measures.fragments) > rule.collapsed_share + _ROUNDING
    halfway = (able | (allowed & (measures.hit >= rule.compromise_hit - _ROUNDING))) & ~collapsed
    has_compromise = is_able & halfway.any(-1, keepdims=True)
    pool = np.where(is_clean, clean, np.where(has_compromise, halfway, allowed))
    score = np.where(pool, balance(measures), -np.inf)
    equal = pool & (score >= score.max(-1, keepdims=True) - rule.equal_score - _ROUNDING)
    has_gap = ~np.isnan(np.where(equal, measures.gap, 0.0)).any(-1, keepdims=True)
    gap = np.where(equal & has_gap, np.nan_to_num(measures.gap), -np.inf)
    widest = equal & (gap >= gap.max(-1, keepdims=True) - rule.equal_gap - _ROUNDING)
    spilled = np.where(equal, measures.fragments, np.inf)
    calmest = equal & (spilled <= spilled.min(-1, keepdims=True) + _ROUNDING)
    best = np.where(has_gap, widest, calmest)
    verdict = np.where(is_clean[..., 0], 0, np.where(is_able[..., 0], 1, 2))
    return Choice(best.argmax(-1), verdict)  # argmax of booleans is the first True: the earliest


class Score(BaseModel):
    """The metrics of one step; step 0 is the base model. Shares are 0 to 1, losses in nats per token; None was not measured.

    What each is, with its formula and the direction that is better, stands in `core.judge.metrics` and docs/checkpoints.md.
    """

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
    near_fragments: float | None = None
    target_nll: float | None = None
    leak_nll: float | None = None
    gap: float | None = None
    hijack: float | None = None
    dnll: float | None = None
    kl: float | None = None
    self_bleu_rise: float | None = None
    own_passed: float | None = None
    own_asked: int = 0
    compression: float | None = None
    perplexity_fall: float | None = None

    @property
    def learned(self) -> float:
        return float(learned(Measures.of([self]))[0])

    @property
    def kept(self) -> float:
        return float(kept(Measures.of([self]))[0])

    @property
    def score(self) -> float:
        return float(balance(Measures.of([self]))[0])

    def breaches(self, rule: Rule = RULE) -> list[str]:
        """Names of the limits this step fails; empty when it can be recommended."""
        return [name for name, failed in failures(Measures.of([self]), rule).items() if failed[0]]

    @property
    def level(self) -> Level:
        """How far the rest is damaged, whatever has been learned; `ok` while every limit but `hit` holds."""
        if max(self.leak, self.fragments) > RULE.red_share:
            return "red"
        return "amber" if set(self.breaches()) - {"hit"} else "ok"


def choose_step(scores: Sequence[Score], rule: Rule = RULE, without: Sequence[int] = ()) -> tuple[Score, VerdictName] | None:
    """What the rule takes of scored steps, and what it calls it; None when no step but the base, or but those left out, is there."""
    steps = sorted((score for score in scores if score.step > 0 and score.step not in without), key=lambda score: score.step)
    if not steps:
        return None
    choice = choose(Measures.of(steps), rule)
    return steps[int(choice.pick)], VERDICTS[int(choice.verdict)]


def pareto_front(scores: Sequence[Score]) -> list[Score]:
    """The steps that no other step beats in both, learned and kept; by falling `kept`, of equal ones the earliest."""
    front: list[Score] = []
    for score in sorted(scores, key=lambda score: (-score.kept, -score.learned, score.step)):
        if not front or score.learned > front[-1].learned:
            front.append(score)
    return front
