"""The report on the held-out runs: regret of the rule and of simple ways to choose, verdicts, alerts. No torch, seconds.

    python -m benchmarks.pick.report

Whatever is fitted here (a fixed number of rows or passes) is fitted on the setting runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.pick.design import IDENTITY_TASK, STUDENT
from benchmarks.pick.fit import FITTED, LIMITS_BEFORE, STUDIED, fixed_passes, fixed_rows
from benchmarks.pick.selectors import (
    CLEAN_HIT,
    Run,
    after_passes,
    after_rows,
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
from core.judge.rule import Rule
from core.train.alerts import Limits

Selector = Callable[[Run], int]
THE_RULE, FITTED_RULE, QUICK, RANDOM = "the rule", "the rule, fitted", "the rule, quick probes", "random (expected)"


def group_of(run: Run) -> str:
    about = run["run"]
    if about["model"] == STUDENT:
        return "student"
    if about["method"] == "full":
        return "full training"
    if about["task"] != IDENTITY_TASK:
        return "task"
    return "identity, Chinese" if "zh" in about["persona"]["languages"] else "identity, English"


def selectors(setting: Sequence[Run]) -> dict[str, Selector]:
    rows, passes = fixed_rows(setting), fixed_passes(setting)
    return {
        THE_RULE: lambda run: by_rule(run, STUDIED)[0],
        FITTED_RULE: lambda run: by_rule(run, FITTED)[0],
        QUICK: lambda run: by_rule(run, STUDIED, "quick")[0],
        "the rule, as it is now": lambda run: by_rule(run, Rule())[0],
        "lowest loss, mixed data": lowest_mixed_loss,
        "lowest loss, target data": lowest_target_loss,
        "last": last,
        f"after {rows:g} rows": lambda run: after_rows(run, rows),
        f"after {passes:g} passes": lambda run: after_passes(run, passes),
        "middle": middle}


def regret_table(runs: Sequence[Run], ways: dict[str, Selector]) -> dict[str, list[float]]:
    """Name of a way to choose -> its regret on each run."""
    found = {name: [float(regrets(run)[way(run)]) for run in runs] for name, way in ways.items()}
    return found | {RANDOM: [float(regrets(run).mean()) for run in runs]}


def selector_lines(runs: Sequence[Run], table: dict[str, list[float]]) -> list[str]:
    groups = list(dict.fromkeys(map(group_of, runs)))
    lines = ["| chosen by | mean regret (95 %) | worst | more than the rule (95 %) | " + " | ".join(groups) + " |",
             "|---|---|---|---|" + "---|" * len(groups)]
    for name, values in table.items():
        mean, low, high = bootstrap_mean(values)
        more = bootstrap_mean(np.subtract(values, table[THE_RULE]))
        parts = [np.mean([value for run, value in zip(runs, values, strict=True) if group_of(run) == group]) for group in groups]
        lines.append(f"| {name} | {mean:.3f} ({low:.3f} to {high:.3f}) | {max(values):.2f} | "
                     f"{more[0]:+.3f} ({more[1]:+.3f} to {more[2]:+.3f}) | " + " | ".join(f"{part:.3f}" for part in parts) + " |")
    return lines


def run_lines(runs: Sequence[Run], table: dict[str, list[float]]) -> list[str]:
    lines = ["| run | verdict | pick | best | oracle S of the pick, of the best | regret | quick | last | target loss | mixed loss | "
             "oracle at the pick: hit, leak, fragments, facts |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for number, run in enumerate(runs):
        place, verdict = by_rule(run, STUDIED)
        scores, seen = oracle_scores(run), run["oracle"]
        others = " | ".join(f"{table[name][number]:.3f}" for name in (QUICK, "last", "lowest loss, target data",
                                                                      "lowest loss, mixed data"))
        lines.append(f"| {run['id']} | {verdict.replace('_', ' ')} | {run['steps'][place]} | {run['steps'][int(scores.argmax())]} | "
                     f"{scores[place]:.3f}, {scores.max():.3f} | {table[THE_RULE][number]:.3f} | {others} | "
                     + ", ".join(f"{seen[key][place]:.2f}" for key in ("hit", "leak", "fragments", "facts_kept")) + " |")
    return lines


def verdict_lines(runs: Sequence[Run], rule: Rule, part: str) -> list[str]:
    """What the verdicts are worth, as the oracle sees the steps that they name."""
    named = [(run, *by_rule(run, rule, part)) for run in runs]
    good = [(run, place) for run, place, verdict in named if verdict == "recommended"]
    rest = [(run, place) for run, place, verdict in named if verdict != "recommended"]
    spills = [run["id"] for run, place in good if is_bad(run)[place]]
    unlearned = [run["id"] for run, place in good if run["oracle"]["hit"][place] < CLEAN_HIT]
    return [f"- recommended: {len(good)} of {len(runs)}; of these collapsed {sum(bool(is_collapsed(run)[place]) for run, place in good)}, "
            f"spilling above the limits {len(spills)} {spills}, "
            f"learned in less than {CLEAN_HIT:.0%} of the oracle's questions {unlearned}",
            f"- not recommended: {len(rest)}; though some step is clean to the oracle: "
            f"{[run['id'] for run, _ in rest if is_clean(run).any()]}; the very pick is: "
            f"{[run['id'] for run, place in rest if is_clean(run)[place]]}"]


def main() -> None:
    setting, held_out = read_scores("setting"), read_scores("held-out")
    ways = selectors(setting)
    table = regret_table(held_out, ways)
    print(f"## {len(held_out)} held-out runs\n", *selector_lines(held_out, table), sep="\n")
    print("\n## Run by run\n", *run_lines(held_out, table), sep="\n")
    print("\n## The setting runs, for comparison\n", *selector_lines(setting, regret_table(setting, ways)), sep="\n")
    print("\n## Verdicts")
    for title, rule, part in (("the rule", STUDIED, "rule"), ("fitted", FITTED, "rule"), ("quick probes", STUDIED, "quick")):
        print(title, *verdict_lines(held_out, rule, part), sep="\n")
    print("\n## Alerts at the steps of identity runs: errors of how many")
    groups = list(dict.fromkeys(map(group_of, held_out)))
    for title, limits in (("now", Limits()), ("before the study", LIMITS_BEFORE)):
        print(title, "all", alert_counts(held_out, limits))
        for group in groups:
            runs = [run for run in held_out if group_of(run) == group]
            if any(run["look"] for run in runs):
                print(title, group, alert_counts(runs, limits))


if __name__ == "__main__":
    main()
