"""Ways to choose a step of a run of `scores.json`, and what choosing it costs. Pure functions of arrays; no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pick.design import TARGET_ROWS
from benchmarks.pick.score import SCORES
from core.judge.rule import VERDICTS, Measures, Rule, VerdictName, balance, choose
from core.train.alerts import LEVELS, Limits, level_of

Run = dict[str, Any]
_METRICS = ("hit", "leak", "fragments", "distinct", "facts_kept", "length_ratio", "own_passed", "target_nll", "gap",
            "perplexity_fall")
# A step is bad, as the oracle sees it, from these shares on: the limits by which the rule itself calls a step clean.
BAD_FRAGMENTS, BAD_LEAK, CLEAN_HIT = 0.10, 0.05, 0.8
# Of a collapse one speaks from here on; as `Rule.red_share`.
COLLAPSED = 0.25


def read_scores(split: str, path: Path = SCORES) -> list[Run]:
    """The runs of one split."""
    return [run for run in json.loads(path.read_text(encoding="utf-8")) if run["split"] == split]


def measures_of(columns: dict[str, list[Any]], others: int) -> Measures:
    count = len(columns["hit"])
    arrays = {name: np.array([np.nan if value is None else value for value in columns.get(name, [None] * count)], float)
              for name in _METRICS}
    return Measures(**arrays, others=others)


def oracle_scores(run: Run) -> np.ndarray:
    """S = 2LR / (L + R) of each step on the oracle's probes."""
    return balance(measures_of(run["oracle"], 0))


def regrets(run: Run) -> np.ndarray:
    """What choosing each step costs: the best step's oracle score minus its own; 0 to 1, down."""
    scores = oracle_scores(run)
    return scores.max() - scores


def by_rule(run: Run, rule: Rule, part: str = "rule") -> tuple[int, VerdictName]:
    """Place and verdict that the rule gives, seeing the `rule` probes or their `quick` part."""
    choice = choose(measures_of(run[part], run["others" if part == "rule" else "quick_others"]), rule)
    return int(choice.pick), VERDICTS[int(choice.verdict)]


def last(run: Run) -> int:
    return len(run["steps"]) - 1


def middle(run: Run) -> int:
    return (len(run["steps"]) - 1) // 2


def lowest_target_loss(run: Run) -> int:
    """What `load_best_model_at_end` takes with held-out rows of what is taught."""
    return int(np.argmin(run["loss"]["target"]))


def lowest_mixed_loss(run: Run) -> int:
    """The same with as many of the base model's own answers to other questions among the held-out rows."""
    return int(np.argmin(np.add(run["loss"]["target"], run["loss"]["elsewhere"])))


def after_rows(run: Run, rows: float) -> int:
    """The step at which nearest to `rows` rows of what is taught had been shown."""
    return int(np.argmin(np.abs(np.multiply(run["steps"], TARGET_ROWS) - rows)))


def after_passes(run: Run, passes: float) -> int:
    """The step at which the rows of what is taught had been shown nearest to `passes` times."""
    return after_rows(run, passes * run["rows"])


def bootstrap_mean(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % interval, by drawing as many values with replacement (Efron 1979, percentiles)."""
    array = np.asarray(values, float)
    drawn = array[np.random.default_rng(seed).integers(0, len(array), (draws, len(array)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(array.mean()), float(low), float(high)


def is_bad(run: Run) -> np.ndarray:
    """Which steps the oracle sees spill: fragments or leaks above the rule's own limits."""
    seen = run["oracle"]
    return (np.array(seen["fragments"]) > BAD_FRAGMENTS) | (np.array(seen["leak"]) > BAD_LEAK)


def is_collapsed(run: Run) -> np.ndarray:
    """Which steps the oracle sees collapsed: a quarter of the other questions gets what was taught, or pieces of it."""
    return np.maximum(run["oracle"]["fragments"], run["oracle"]["leak"]) > COLLAPSED


def is_clean(run: Run) -> np.ndarray:
    """Which steps have learned and do not spill, as the oracle sees it."""
    return ~is_bad(run) & (np.array(run["oracle"]["hit"]) >= CLEAN_HIT)


def levels(run: Run, limits: Limits) -> np.ndarray:
    """The alert at each step, as an index into LEVELS, had the watch looked at it with its largest choice of questions."""
    read = zip(*(run["look"][name] for name in ("target_nll", "gap", "hijacked", "asked")), strict=True)
    return np.array([LEVELS.index(level_of(target, gap, [True] * hijacked + [False] * (asked - hijacked), limits))
                     for target, gap, hijacked, asked in read])


def alert_counts(runs: Sequence[Run], limits: Limits) -> dict[str, tuple[int, int]]:
    """How the alerts do on the steps of identity runs: (errors, out of).

    `amber missed`: fragments above a tenth, and no alert. `amber false`: an alert, and no more than a tenth. `red missed`: fragments
    above a quarter, and not red. `red false`: red, and no more than a tenth.
    """
    watched = [run for run in runs if run["look"]]
    level = np.concatenate([levels(run, limits) for run in watched])
    spilled = np.concatenate([run["oracle"]["fragments"] for run in watched])
    bad, broken = spilled > BAD_FRAGMENTS, spilled > COLLAPSED
    return {"amber missed": (int((bad & (level == 0)).sum()), int(bad.sum())),
            "amber false": (int((~bad & (level > 0)).sum()), int((~bad).sum())),
            "red missed": (int((broken & (level < 2)).sum()), int(broken.sum())),
            "red false": (int((~bad & (level == 2)).sum()), int((~bad).sum()))}
