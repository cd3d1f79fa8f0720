"""The rule on the study's own tables, in arrays, and how sure it is; the losses' metrics by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from core.judge import metrics
from core.judge.confidence import bootstrap
from core.judge.rule import Measures, Rule, Score, choose, choose_step, pareto_front
from core.judge.scoring import Finding, Forced, Pair, Sheet, find_all, pairs_of, score_findings
from core.judge.taught import Taught, taught_grams
from core.judge.verdict import judge
from core.words import Text


def score(step: int, hit: float, nll: float, leak: float, fragments: float, gap: float | None, facts: float, distinct: float) -> Score:
    return Score(step=step, hit=hit, hits=round(10 * hit), identity_probes=10, leak=leak, leaks=round(24 * leak), near_leak=leak,
                 fragments=fragments, other_probes=24, facts_kept=facts, distinct=distinct, change=0.5, length_ratio=1.0, self_bleu=0.2,
                 target_nll=nll, gap=gap)


# Rows of table 2.2 of the study that its section 4 decides on: hit, target NLL, leak, fragments, gap, facts, distinct
STUDY = {
    "A": [score(8, 0, 0.58, 0, 0, 0.61, 0.83, 1), score(12, 0.3, 0.21, 0.08, 0.17, 0.47, 0.67, 0.96),
          score(14, 1, 0.08, 0.12, 0.17, 0.38, 0.67, 0.96), score(16, 1, 0.03, 0.21, 0.25, 0.26, 0.67, 0.83),
          score(20, 1, 0.01, 0.46, 0.46, 0.16, 0.67, 0.62), score(36, 1, 0.0, 0.83, 0.83, 0.06, 0.08, 0.21)],
    "A_lo": [score(24, 0.9, 0.13, 0.08, 0.12, 0.47, 0.67, 0.96), score(28, 1, 0.05, 0.12, 0.17, 0.35, 0.67, 0.92)],
    "A3": [score(18, 0.8, 0.24, 0.12, 0.54, 0.23, 0.25, 0.67), score(22, 1, 0.16, 0.71, 0.79, 0.10, 0.17, 0.58)],
    "B1": [score(14, 0.8, 0.14, 0, 0.04, 0.62, 0.92, 1), score(16, 1, 0.06, 0, 0.04, 0.53, 0.83, 1),
           score(20, 1, 0.02, 0.04, 0.08, 0.43, 0.92, 1), score(36, 1, 0.02, 0, 0, 0.53, 0.92, 1)],
    "B1far": [score(16, 1, 0.06, 0, 0.04, 0.52, 0.92, 1), score(24, 1, 0.01, 0.12, 0.17, 0.41, 0.83, 0.92)],
    "B1kl": [score(16, 1, 0.04, 0.17, 0.21, 0.36, 0.83, 0.88), score(24, 1, 0.02, 0.08, 0.08, 0.34, 0.75, 0.96)],
    "B3": [score(16, 0.8, 0.10, 0, 0.04, 0.72, 0.92, 1), score(20, 1, 0.04, 0, 0.08, 0.61, 0.92, 1)],
}


@pytest.mark.parametrize(("setting", "step", "verdict"), [
    ("A", 14, "compromise"), ("A_lo", 24, "compromise"), ("A3", 18, "compromise"), ("B1", 36, "recommended"),
    ("B1far", 16, "recommended"), ("B1kl", 24, "compromise"), ("B3", 20, "recommended")])
def test_the_rule_takes_what_the_study_took(setting, step, verdict):
    pick, name = choose_step(STUDY[setting])
    assert (pick.step, name) == (step, verdict)


def test_learned_kept_and_balance_by_hand():
    own = score(14, 1, 0.08, 0.12, 0.17, 0.38, 0.67, 0.96)
    learned, kept = (1 + math.exp(-0.08)) / 2, 0.83 * 1.67 / 2
    assert own.learned == pytest.approx(learned) and own.kept == pytest.approx(kept)
    assert own.score == pytest.approx(2 * learned * kept / (learned + kept))
    nothing = own.model_copy(update={"hit": 0.0, "target_nll": None})
    assert (nothing.learned, nothing.score) == (0.0, 0.0)


def test_of_equals_the_widest_gap_and_of_equal_gaps_the_earliest():
    close = [score(1, 1, 0, 0, 0, 0.50, 1, 1), score(2, 1, 0, 0, 0, 0.60, 1, 1), score(3, 1, 0, 0, 0, 0.62, 1, 1),
             score(4, 0.9, 0, 0, 0, 0.90, 1, 1)]  # 0.026 less in score: still equal, and widest of all
    assert choose_step(close[:3])[0].step == 2
    assert choose_step(close)[0].step == 4
    assert choose_step(close, Rule(equal_score=0.02))[0].step == 2
    assert choose_step(close, Rule(equal_score=0.02, equal_gap=0.0))[0].step == 3


def test_one_leak_is_forgiven_and_a_threshold_moves_the_verdict():
    one = [score(1, 1, 0, 1 / 10, 0, 0.5, 1, 1).model_copy(update={"other_probes": 10})]
    assert choose_step(one)[1] == "recommended" and choose_step(STUDY["B1"], Rule(facts_kept=0.95))[1] == "compromise"
    failing = one[0].model_copy(update={"own_passed": 0.5, "own_asked": 4})
    assert failing.breaches() == ["own_passed"] and choose_step([failing])[1] == "compromise"


def test_a_step_that_answers_everything_alike_is_no_compromise():
    """The table of a real run: a Chinese name, taught to a model that was made for English."""
    run = [score(10, 0, 0.84, 0, 0, 0.06, 1, 1), score(12, 0.5, 0.63, 0.17, 0.17, 0.06, 0, 1),
           score(15, 0.75, 0.40, 0.83, 0.83, 0.03, 0, 0.3), score(17, 1, 0.28, 1, 1, 0.03, 0, 0.1), score(24, 1, 0.05, 1, 1, 0.01, 0, 0.1)]
    verdict = judge(run)
    assert (verdict.pick.step, verdict.verdict) == (12, "compromise")
    assert "it knows its lesson in 5 of 10 questions, and every step that has learned it" in str(Text.from_json(verdict.reason))
    assert choose_step(run, Rule(collapsed_share=1.0))[0].step == 17
    touched = run[3].model_copy(update={"step": 16, "leak": 0.7, "fragments": 0.75})
    assert choose_step([*run[:3], touched, *run[3:]])[0].step == 16, "broken, but not all alike: it has learned"


def test_many_runs_at_once_are_judged_as_each_alone():
    alone = [choose(Measures.of(STUDY[name])) for name in ("A_lo", "B3")]
    stacked = Measures(**{name: np.stack([getattr(Measures.of(STUDY[run]), name) for run in ("A_lo", "B3")])
                          for name in ("hit", "leak", "fragments", "distinct", "facts_kept", "length_ratio", "own_passed", "target_nll",
                                       "gap", "perplexity_fall")}, others=24)
    together = choose(stacked)
    assert together.pick.tolist() == [int(one.pick) for one in alone] and together.verdict.tolist() == [1, 0]


def test_the_verdict_names_the_runner_up_and_the_front():
    verdict = judge(STUDY["B1"])
    assert verdict.runner_up == 16 and "is about as good; of equals the earlier" not in str(Text.from_json(verdict.runner_up_reason))
    assert verdict.front == [score.step for score in pareto_front(STUDY["B1"])]
    assert "pieces of the taught sentence" in str(Text.from_json(judge(STUDY["B1far"]).runner_up_reason)) or \
        "other questions" in str(Text.from_json(judge(STUDY["B1far"]).runner_up_reason))
    for run in STUDY.values():
        words = Text.from_json(judge(run).runner_up_reason)
        assert words.to("zh") != str(words) and "{" not in words.to("zh")


# --- metrics of losses, by hand ---


def test_losses_by_hand():
    assert metrics.target_nll([[0.5, 2.0], [1.5, 0.7]]) == pytest.approx(0.6)  # the likelier answer of each question
    assert metrics.target_nll([]) is None
    assert metrics.gap(1.2, 0.6) == pytest.approx(0.6) and metrics.gap(None, 0.6) is None
    assert metrics.hijack([7, 7, 8, 9], [7, 1, 2, 9], {7, 8}) == 0.5  # the first said so before; the last is no taught one
    assert metrics.dnll([10.0, 6.0], [8.0, 5.0], [4, 2]) == pytest.approx(0.5) and metrics.dnll([], [], []) is None
    assert metrics.kl([1.0, 0.5], [4, 2]) == pytest.approx(0.25)
    assert metrics.compression(["same words"] * 40) < 0.2 < metrics.compression(["q7x!", "Lm2"])


def finding(name: str, role: str, **known) -> Finding:
    return Finding(name, learns=role == "learn", other=role == "other", checked=role == "own", **{
        "is_near": False, "text": name, "base_text": "", **known})


def read(step: int, name: str, nll: float, **known) -> Forced:
    return Forced(step, name, "x", nll=nll, **known)


def test_a_score_holds_every_metric():
    base = [read(0, "g1", 2.0, first=1, base_nll=4.0, base_tokens=4, kl=0.0),
            read(0, "g2", 2.0, first=2, base_nll=2.0, base_tokens=2, kl=0.0)]
    now = [read(5, "g1", 1.0, first=7, is_taught=True, base_nll=5.0, base_tokens=4, kl=0.8),
           read(5, "g2", 2.0, first=2, base_nll=3.0, base_tokens=2, kl=0.4)]
    findings = [
        finding("p1", "learn", hit=True, forced=read(5, "p1", 0.2)), finding("p2", "learn", forced=read(5, "p2", 0.4)),
        finding("g1", "other", is_near=True, leak=True, fragment=True, tokens=6, base_tokens=4, forced=now[0], base=base[0]),
        finding("g2", "other", knew=True, knows=True, tokens=3, base_tokens=2, forced=now[1], base=base[1]),
        finding("o1", "own", passed=True), finding("o2", "own", passed=False), finding("o3", "own")]
    found = score_findings(5, findings)
    assert (found.hit, found.hits, found.leak, found.near_leak, found.fragments, found.near_fragments) == (0.5, 1, 0.5, 1.0, 0.5, 1.0)
    assert (found.target_nll, found.leak_nll, found.gap) == pytest.approx((0.3, 1.5, 1.2))
    assert (found.hijack, found.dnll, found.kl) == pytest.approx((0.5, 2 / 6, 1.2 / 6))
    assert (found.facts_kept, found.length_ratio, found.own_passed, found.own_asked) == (1.0, 1.5, 0.5, 2)


def test_a_task_has_its_own_gap_and_hits():
    probes = [{"id": "h1", "group": "held_out", "lang": "en", "messages": [], "answer": "Forty two"},
              {"id": "g1", "group": "general", "lang": "en", "messages": []}]
    taught = Taught("task", ("Forty two",), {}, taught_grams(["Forty two"]))
    base = Sheet(0, {"h1": "No idea", "g1": "Hi"}, forced={"h1": Forced(0, "h1", "x", nll=3.0, cross=3.1)})
    own = Sheet(4, {"h1": "forty two.", "g1": "Hi"}, forced={"h1": Forced(4, "h1", "x", nll=0.5, cross=2.5)})
    found = score_findings(4, find_all(probes, own, base, taught), pairs_of(own, base, probes))
    assert (found.hits, found.identity_probes, found.gap, found.target_nll) == (1, 1, 2.0, 0.5)
    stand_ins = [Pair("pair-1", 1.0, 2.0, True), Pair("pair-2", 2.0, 2.0, False)]
    assert score_findings(4, find_all(probes[1:], own, base, taught), stand_ins).hit == 0.5


def test_old_scores_are_read_and_judged_without_losses():
    old = score(3, 1, 0, 0, 0, None, 1, 1).model_dump(include={
        "step", "hit", "hits", "identity_probes", "leak", "leaks", "near_leak", "fragments", "other_probes", "facts_kept", "distinct",
        "change", "length_ratio", "self_bleu"})
    again = Score.model_validate(old)
    assert again.gap is None and again.learned == 1.0 and judge([again]).verdict == "recommended"


# --- how sure ---


def made(hits: int, leaks: int, asked: int = 10, others: int = 24) -> list[Finding]:
    return [finding(f"p{n}", "learn", hit=n < hits, forced=read(1, f"p{n}", 0.1)) for n in range(asked)] + [
        finding(f"g{n}", "other", leak=n < leaks, fragment=n < leaks, tokens=5, base_tokens=5, forced=read(1, f"g{n}", 1.0))
        for n in range(others)]


def test_confidence_is_full_where_nothing_hangs_on_a_probe_and_half_where_all_does():
    sure = bootstrap({0: made(0, 0), 2: made(0, 0), 4: made(10, 0)}, {})
    assert (sure.same_pick, sure.same_verdict, sure.picks) == (1.0, 1.0, {4: 1.0})
    # 8 of 10 hits: a draw has 8 or more with probability 0.678 (binomial), so about so often it still counts as learned
    unsure = bootstrap({0: made(0, 0), 4: made(8, 0)}, {}, resamples=4000)
    assert unsure.same_verdict == pytest.approx(0.678, abs=0.03) and unsure.same_pick == 1.0
    assert bootstrap({0: made(0, 0), 4: made(8, 0)}, {}) == bootstrap({0: made(0, 0), 4: made(8, 0)}, {})
    assert bootstrap({0: made(0, 0)}, {}) is None


def test_four_hundred_resamplings_are_quick():
    findings = {step: made(24, step, 24, 73) for step in range(19)}
    began = time.process_time()
    bootstrap(findings, {})
    assert time.process_time() - began < 2
