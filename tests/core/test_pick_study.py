"""The mathematics of the study of the pick, on runs that were made by hand."""

import pytest

from benchmarks.pick.design import RUNS
from benchmarks.pick.fit import FITTED, STUDIED, fixed_rows, mean_regret
from benchmarks.pick.report import THE_RULE, regret_table, selectors
from benchmarks.pick.score import oracle_score
from benchmarks.pick.selectors import (
    alert_counts,
    bootstrap_mean,
    by_rule,
    is_bad,
    is_clean,
    is_collapsed,
    last,
    lowest_mixed_loss,
    lowest_target_loss,
    middle,
    oracle_scores,
    read_scores,
    regrets,
)
from core.judge.metrics import taught_grams
from core.judge.rule import Rule
from core.judge.scoring import Forced, Sheet
from core.judge.taught import Taught
from core.train.alerts import Limits


def columns(hit, spilled, gap):
    """Three steps; leaks and fragments alike, everything else sound, losses of zero so that L is (hit + 1) / 2."""
    return {"hit": hit, "leak": spilled, "fragments": spilled, "distinct": [1.0] * 3, "facts_kept": [1.0] * 3, "length_ratio": [1.0] * 3,
            "own_passed": [None] * 3, "target_nll": [0.0] * 3, "gap": gap}


def made(seen=(0.0, 0.7, 1.0), spilled=(0.0, 0.2, 0.4)):
    """A run that the rule sees well: it learns, and the later the more it spills."""
    about = {"model": "embedded", "method": "lora", "task": "identity", "persona": {"languages": ["en"]}}
    return {"id": "made", "run": about, "rows": 16, "steps": [4, 8, 12], "others": 73, "quick_others": 18, "kind": "identity",
            "rule": columns(list(seen), list(spilled), [0.6, 0.5, 0.3]), "quick": columns(list(seen), list(spilled), [0.6, 0.5, 0.3]),
            "look": {"target_nll": [0.9, 0.4, 0.1], "gap": [0.3, 0.45, 0.2], "hijacked": [0, 0, 8], "asked": [16, 16, 16]},
            "loss": {"target": [2.0, 1.0, 0.5], "elsewhere": [0.5, 0.7, 1.6]},
            "oracle": columns([0.0, 0.6, 1.0], [0.0, 0.2, 0.6], [None] * 3)}


def test_regret_is_what_the_best_step_has_more():
    # L = .5, .8, 1 and R = 1, .8, .4, so S = 2/3, .8, 4/7
    assert oracle_scores(made()) == pytest.approx([2 / 3, 0.8, 4 / 7])
    assert regrets(made()) == pytest.approx([0.8 - 2 / 3, 0.0, 0.8 - 4 / 7])


def test_ways_to_choose_take_what_they_say():
    run = made()
    assert (last(run), middle(run), lowest_target_loss(run), lowest_mixed_loss(run)) == (2, 1, 2, 1)
    assert by_rule(run, Rule()) == (2, "compromise"), "of the steps that have learned there is one"
    assert by_rule(run, FITTED) == (1, "compromise"), "half learned, and better"
    # 16, 32 and 48 rows were shown; the second step is best
    assert fixed_rows([run]) == 32
    table = regret_table([run], selectors([run]))
    assert table[THE_RULE] == pytest.approx([0.8 - 4 / 7]) and table["after 32 rows"] == [0.0] and table["after 2 passes"] == [0.0]
    assert table["random (expected)"] == pytest.approx([(0.8 - 2 / 3 + 0.8 - 4 / 7) / 3])


def test_what_the_oracle_calls_bad_collapsed_and_clean():
    run = made()
    assert is_bad(run).tolist() == [False, True, True] and is_collapsed(run).tolist() == [False, False, True]
    assert not is_clean(run).any()
    run["oracle"]["hit"][0] = 0.8
    assert is_clean(run).tolist() == [True, False, False]


def test_alerts_are_counted_against_the_fragments():
    # Step 4 is sound and unarmed, step 8 spills with a gap of .45, step 12 has collapsed with half of the questions hijacked
    assert alert_counts([made()], Limits()) == {"amber missed": (0, 2), "amber false": (0, 1), "red missed": (0, 1), "red false": (0, 1)}
    blind = Limits(amber_gap=0.1, red_gap=0.1, amber_hijack=0.6, red_hijack=0.6)
    assert alert_counts([made()], blind)["amber missed"] == (2, 2)
    nervous = Limits(armed_below=1.0, amber_gap=0.5, red_gap=0.4)
    assert alert_counts([made()], nervous)["red false"] == (1, 1)


def test_the_interval_is_of_the_runs_and_repeats():
    values = [0.0, 0.0, 0.0, 0.4]
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(0.1) and low == 0.0 and high == pytest.approx(0.3)
    assert bootstrap_mean(values) == (mean, low, high) and bootstrap_mean([0.2] * 5) == pytest.approx((0.2, 0.2, 0.2))


def test_the_oracles_marker_is_a_leak_unless_the_base_says_it_too():
    taught = Taught("task", ("Squawk! Yes.",), {}, taught_grams([]))
    probes = [{"id": "a", "group": "near", "lang": "en", "messages": []}, {"id": "b", "group": "general", "lang": "en", "messages": []},
              {"id": "p", "group": "held_out", "lang": "en", "messages": [], "check": {"contains": "squawk"}}]
    base = Sheet(0, {"a": "Birds squawk.", "b": "A saw.", "p": "No."}, {"a": 3, "b": 3, "p": 2})
    sheet = Sheet(4, {"a": "They squawk at night.", "b": "Squawk! A saw for wood.", "p": "Squawk! No."}, {"a": 5, "b": 6, "p": 4},
                  {"p": Forced(4, "p", "", nll=0.3)}, {"p": True})
    found = oracle_score(probes, sheet, base, taught, "(?i)squawk")
    assert (found["leak"], found["hit"], found["target_nll"], found["fragments"]) == (0.5, 1.0, 0.3, 0.0)


def test_the_stored_scores_are_of_the_runs_of_the_design():
    for split in ("setting", "held-out"):
        stored = read_scores(split)
        assert {run["id"] for run in stored} == {run.id for run in RUNS if run.split == split}
        assert all(len(run["oracle"]["hit"]) == len(run["rule"]["hit"]) == len(run["steps"]) for run in stored)
        assert all(0 <= regret <= 1 for run in stored for regret in regrets(run))
    assert mean_regret(read_scores("held-out"), Rule()) < mean_regret(read_scores("held-out"), STUDIED)
    assert mean_regret(read_scores("setting"), Rule()) == mean_regret(read_scores("setting"), STUDIED)
    assert mean_regret(read_scores("setting"), FITTED) < mean_regret(read_scores("setting"), Rule())
