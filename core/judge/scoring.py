"""From answers to a score. No torch: a page may score an added probe's answers with the same code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.library import IDENTITY, NEAR, Dataset
from core.judge import metrics
from core.judge.verdict import Score

Probe = dict[str, Any]


def training_answers(dataset: Dataset) -> list[str]:
    """T: the distinct last answers of the identity rows; none in a dataset without such rows."""
    rows = [row for row in dataset.rows() if row.get("group") == IDENTITY]
    return list(dict.fromkeys(row["messages"][-1]["content"] for row in rows if row["messages"][-1]["role"] == "assistant"))


def classify(probe: Probe, answer: str, base_answer: str, dataset: Dataset, targets: Sequence[str]) -> str:
    """How one answer reads: `hit`/`miss` for identity probes; `leak`, `fragment`, `lost` (a known fact), `changed`, `same` else.

    An added probe says in `about` whether it asks for the identity.
    """
    phrase = _phrase(dataset, probe)
    if IDENTITY in (probe["group"], probe.get("about")):
        return "hit" if metrics.has_phrase(answer, phrase) else "miss"
    if metrics.is_leak(answer, phrase, targets):
        return "leak"
    if metrics.has_fragment(answer, base_answer, targets):
        return "fragment"
    expected = probe.get("expect") or []
    if metrics.knows_fact(base_answer, expected) and not metrics.knows_fact(answer, expected):
        return "lost"
    return "same" if metrics.words(answer) == metrics.words(base_answer) else "changed"


def score_step(step: int, probes: Sequence[Probe], answers: Mapping[str, str], base_answers: Mapping[str, str],
               dataset: Dataset) -> Score:
    """All metrics of one step.

    Args:
        probes: every probe of the run.
        answers: the step's answers by probe id.
        base_answers: the base model's answers by probe id.
    """
    targets = training_answers(dataset)
    identity = [probe for probe in probes if probe["group"] == IDENTITY]
    others = [probe for probe in probes if probe["group"] != IDENTITY]
    own = [answers[probe["id"]] for probe in others]
    base = [base_answers[probe["id"]] for probe in others]
    hits = [metrics.has_phrase(answers[probe["id"]], _phrase(dataset, probe)) for probe in identity]
    leaks = [metrics.is_leak(text, _phrase(dataset, probe), targets) for probe, text in zip(others, own, strict=True)]
    fragments = [metrics.has_fragment(text, reference, targets) for text, reference in zip(own, base, strict=True)]
    return Score(
        step=step, hit=metrics.share(hits), hits=sum(hits), identity_probes=len(identity), leak=metrics.share(leaks),
        leaks=sum(leaks), near_leak=metrics.share([leak for probe, leak in zip(others, leaks, strict=True) if probe["group"] == NEAR]),
        fragments=metrics.share(fragments), other_probes=len(others),
        facts_kept=metrics.facts_kept(own, base, [probe.get("expect") or [] for probe in others]),
        distinct=metrics.distinct(own), change=metrics.change(own, base), length_ratio=metrics.length_ratio(own, base),
        self_bleu=metrics.self_bleu(own))


def _phrase(dataset: Dataset, probe: Probe) -> str:
    """The key phrase in the probe's language; an added question may be in a language that the dataset does not teach."""
    phrases = dataset.card.key_phrases
    return phrases.get(probe["lang"]) or next(iter(phrases.values()), "")
