"""How sure a verdict is: the rule applied again and again to probes drawn anew from those that were asked (Efron 1979). No torch.

The probes are a sample of all the questions that could have been asked. Each resampling draws as many of them, with replacement, among
those for what is taught and those for the rest apart; what the rule then takes tells how much hangs on single questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from core.judge.metrics import words
from core.judge.rule import RULE, Measures, Rule, choose
from core.judge.scoring import Finding, Pair

RESAMPLES = 400
_SEED = 20


class Confidence(BaseModel):
    """Shares of the resamplings, 0 to 1.

    Attributes:
        same_pick: that took the same step.
        same_verdict: that gave the same verdict, whichever the step.
        picks: step -> share, most frequent first.
    """

    same_pick: float
    same_verdict: float
    picks: dict[int, float]
    resamples: int = RESAMPLES


def bootstrap(findings: Mapping[int, Sequence[Finding]], pairs: Mapping[int, Sequence[Pair]], rule: Rule = RULE,
              resamples: int = RESAMPLES, seed: int = _SEED) -> Confidence | None:
    """Confidence of the rule's choice among the steps of `findings`, the base left out; None when there is no step.

    Args:
        findings: step -> findings, of the same probes in the same order for every step.
        pairs: step -> readings of held-out rows; empty for an identity.
        rule: the thresholds.
        resamples: how often.
        seed: the same one gives the same numbers.
    """
    steps = sorted(step for step in findings if step > 0)
    if not steps:
        return None
    whole = _measures([findings[step] for step in steps], [pairs.get(step, ()) for step in steps], None, 1)
    drawn = _measures([findings[step] for step in steps], [pairs.get(step, ()) for step in steps], np.random.default_rng(seed), resamples)
    own, others = choose(whole, rule), choose(drawn, rule)
    counts = Counter(others.pick.tolist())
    return Confidence(same_pick=counts[int(own.pick[0])] / resamples, same_verdict=float((others.verdict == own.verdict[0]).mean()),
                      picks={steps[place]: count / resamples for place, count in counts.most_common()}, resamples=resamples)


def _measures(findings: Sequence[Sequence[Finding]], pairs: Sequence[Sequence[Pair]], random: np.random.Generator | None,
              resamples: int) -> Measures:
    """The rule's metrics, each (resamples, steps), with every probe counted as often as it was drawn; once each without `random`."""
    learning = np.array([finding.learns for finding in findings[0]], bool)
    other = np.array([finding.other for finding in findings[0]], bool)
    checked = np.array([finding.checked and all(row[place].passed is not None for row in findings)
                        for place, finding in enumerate(findings[0])], bool)
    home, away = _draw(int(learning.sum()), random, resamples), _draw(int(other.sum()), random, resamples)
    own = home if (learning == checked).all() else _draw(int(checked.sum()), random, resamples)
    rows = _draw(len(pairs[0]), random, resamples)

    def values(name: str, chosen: np.ndarray) -> np.ndarray:
        return np.array([[float(getattr(finding, name) or 0) for finding, is_in in zip(row, chosen, strict=True) if is_in]
                         for row in findings]).reshape(len(findings), int(chosen.sum()))

    def losses(chosen: np.ndarray) -> np.ndarray:
        return np.array([[np.nan if finding.forced is None or finding.forced.nll is None else finding.forced.nll
                          for finding, is_in in zip(row, chosen, strict=True) if is_in] for row in findings]
                        ).reshape(len(findings), int(chosen.sum()))

    if pairs[0]:
        target = _mean(rows, np.array([[np.nan if pair.nll is None else pair.nll for pair in row] for row in pairs]))
        far = _mean(rows, np.array([[np.nan if pair.cross is None else pair.cross for pair in row] for row in pairs]))
    else:
        target, far = _mean(home, losses(learning)), _mean(away, losses(other))
    hits = np.array([[float(pair.hit) for pair in row] for row in pairs])
    falls = _mean(rows, np.array([[np.nan if pair.fall is None else pair.fall for pair in row] for row in pairs]))
    knew = values("knew", other)
    known, kept = away @ knew.T, away @ (knew * values("knows", other)).T
    base_tokens = away @ values("base_tokens", other).T
    tokens = away @ values("tokens", other).T
    return Measures(
        hit=_mean(home, values("hit", learning), 0.0) if learning.any() else _mean(rows, hits, 0.0),
        leak=_mean(away, values("leak", other), 0.0),
        fragments=_mean(away, values("fragment", other), 0.0), distinct=_distinct(away, findings, other),
        facts_kept=np.where(known > 0, kept / np.where(known > 0, known, 1), np.nan),
        length_ratio=np.where(base_tokens > 0, tokens / np.where(base_tokens > 0, base_tokens, 1), 1 + tokens),
        own_passed=_mean(own, values("passed", checked)), target_nll=target, gap=far - target,
        perplexity_fall=1 - np.exp(-falls), others=int(other.sum()))


def _draw(count: int, random: np.random.Generator | None, resamples: int) -> np.ndarray:
    """How often each of `count` probes is drawn: (resamples, count), rows that sum to `count`."""
    if random is None or count == 0:
        return np.ones((resamples, count))
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)


def _mean(drawn: np.ndarray, values: np.ndarray, nothing: float = np.nan) -> np.ndarray:
    """Means over the drawn probes, (resamples, steps)."""
    if drawn.shape[1] == 0:
        return np.full((len(drawn), len(values)), nothing)
    return drawn @ values.T / drawn.shape[1]


def _distinct(drawn: np.ndarray, findings: Sequence[Sequence[Finding]], chosen: np.ndarray) -> np.ndarray:
    """Different answers / answers, of the probes that were drawn at all: one drawn twice is no answer given twice."""
    there = drawn > 0
    if there.shape[1] == 0:
        return np.ones((len(drawn), len(findings)))
    columns = []
    for row in findings:
        number: dict[tuple[str, ...], int] = {}
        places = [number.setdefault(words(finding.text), len(number)) for finding, is_in in zip(row, chosen, strict=True) if is_in]
        said = np.zeros((len(places), len(number)))
        said[np.arange(len(places)), places] = 1
        columns.append(((there @ said) > 0).sum(1) / there.sum(1))
    return np.stack(columns, axis=1)
