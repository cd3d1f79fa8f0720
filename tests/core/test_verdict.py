"""The rule: what it takes, what it calls it, and the words it gives."""

from __future__ import annotations

import pytest

from core.judge.verdict import Score, Verdict, choose_by_hand, judge
from core.words import Text


def score(step: int, hit: float, leak: float, fragments: float | None = None, facts: float | None = 1.0, distinct: float = 1.0) -> Score:
    return Score(step=step, hit=hit, hits=round(10 * hit), identity_probes=10, leak=leak, leaks=round(24 * leak), near_leak=leak,
                 fragments=leak if fragments is None else fragments, other_probes=24, facts_kept=facts, distinct=distinct, change=0.5,
                 length_ratio=1.0, self_bleu=0.2)


BASE = score(0, 0, 0)
# Table 2.2 of the study: identity only (A) and with replay (B1)
STUDY_A = [BASE, score(8, 0, 0, 0, 0.83), score(12, 0.3, 0.08, 0.17, 0.67, 0.96), score(14, 1, 0.12, 0.17, 0.67, 0.96),
           score(16, 1, 0.21, 0.25, 0.67, 0.83), score(20, 1, 0.46, 0.46, 0.67, 0.62), score(36, 1, 0.83, 0.83, 0.08, 0.21)]
STUDY_B1 = [BASE, score(14, 0.8, 0, 0.04, 0.92), score(16, 1, 0, 0.04, 0.83), score(20, 1, 0.04, 0.08, 0.92), score(36, 1, 0, 0, 0.92)]


def test_the_study_is_judged_as_the_study_did():
    identity_only, with_replay = judge(STUDY_A), judge(STUDY_B1)
    assert (identity_only.verdict, identity_only.pick.step) == ("compromise", 14)
    assert (with_replay.verdict, with_replay.pick.step) == ("recommended", 36)
    assert identity_only.breaches == ["leak", "fragments", "facts_kept"] and with_replay.breaches == []


def test_a_collapsed_run_is_never_recommended_and_an_ignorant_one_is_told_so():
    collapsed = judge([BASE, score(10, 1, 0.9, distinct=0.1), score(20, 1, 1.0, distinct=0.1)])
    assert collapsed.verdict == "compromise" and collapsed.pick.step == 10
    ignorant = judge([BASE, score(10, 0, 0), score(20, 0.2, 0)])
    assert ignorant.verdict == "not_learned" and ignorant.pick.step == 20


def test_among_equals_the_one_with_fewest_fragments_then_the_earliest():
    assert judge([BASE, score(1, 1, 0, 0.04), score(2, 1, 0, 0.02), score(3, 1, 0, 0.02)]).pick.step == 2


def test_the_base_is_never_chosen():
    with pytest.raises(ValueError, match="no snapshot"):
        judge([BASE])


def test_the_words_name_numbers_and_what_breaks_when():
    verdict = judge(STUDY_A)
    reason, before, after = (Text.from_json(getattr(verdict, key)) for key in ("reason", "before", "after"))
    assert str(reason).startswith("Step 14 of 36 is only a compromise: it has learned who it is (10 of 10), but 3 of 24 other questions")
    assert str(before) == "Before it, at step 12, it knows its lesson in 3 of 10 questions only."
    assert str(after) == "From step 16 on it answers other questions with what was taught; at step 36 that is 20 of 24."
    assert "29 %" in str(Text.from_json(verdict.certainty))  # the 95 % quantile of Beta(4, 21) is 0.292
    for text in (reason, before, after):
        assert text.to("zh") != str(text) and "{" not in text.to("zh")


def test_a_choice_by_hand_keeps_the_rules_choice():
    verdict = choose_by_hand(judge(STUDY_A), STUDY_A, 16)
    assert (verdict.pick.step, verdict.rule_step, verdict.chosen_by) == (16, 14, "hand")
    assert Verdict.model_validate(verdict.model_dump()) == verdict
