"""What the setting runs say about the thresholds of the rule and of the alerts: each alone, over a coarse grid. No torch, seconds.

    python -m benchmarks.pick.fit

A gain is clear from `CLEAR_REGRET` and `CLEAR_ALERT` on; else the default stays, and the table shows how flat it is there. `FITTED` is what
came out for the rule: one threshold, which the held-out runs did not confirm, so that the rule stays as it was. `LIMITS_BEFORE` are the
alerts' limits that the study found in place: `amber_hijack` had a clear gain, and of the flat stretch the nearest value was taken;
`red_hijack` is the next one above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.pick.selectors import Run, after_passes, after_rows, alert_counts, by_rule, is_bad, read_scores, regrets
from core.judge.rule import Rule
from core.train.alerts import Limits

# The rule as the study found it; what it has learned since, that a collapsed step is no compromise, is reported beside it.
STUDIED = Rule(collapsed_share=1.0)
FITTED = replace(STUDIED, compromise_hit=0.6)
LIMITS_BEFORE = Limits(amber_hijack=0.08, red_hijack=0.15)
CLEAR_REGRET, CLEAR_ALERT = 0.01, 0.05
RULE_GRID: dict[str, tuple[float, ...]] = {
    "hit": (0.7, 0.75, 0.8, 0.85, 0.9), "leak": (0.03, 0.05, 0.07), "fragments": (0.05, 0.08, 0.10, 0.12),
    "distinct": (0.85, 0.9, 0.95), "facts_kept": (0.6, 0.65, 0.7, 0.75, 0.8), "compromise_hit": (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
    "equal_score": (0.0, 0.01, 0.02, 0.03, 0.04, 0.05), "equal_gap": (0.0, 0.02, 0.05, 0.10)}
LIMITS_GRID: dict[str, tuple[float, ...]] = {
    "armed_below": (0.3, 0.4, 0.5, 0.7, 1.0), "amber_gap": (0.35, 0.40, 0.45, 0.50, 0.55), "red_gap": (0.2, 0.25, 0.3, 0.35, 0.40),
    "amber_hijack": (0.05, 0.08, 0.15, 0.20, 0.25), "red_hijack": (0.10, 0.15, 0.20, 0.30, 0.40)}
ROWS_GRID = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 240, 320)
PASSES_GRID = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10, 20)


def mean_regret(runs: Sequence[Run], rule: Rule) -> float:
    return sum(float(regrets(run)[by_rule(run, rule)[0]]) for run in runs) / len(runs)


def bad_recommendations(runs: Sequence[Run], rule: Rule) -> tuple[int, int]:
    """How many recommended steps spill as the oracle sees it, and how many are recommended."""
    chosen = [(run, *by_rule(run, rule)) for run in runs]
    recommended = [(run, place) for run, place, verdict in chosen if verdict == "recommended"]
    return sum(bool(is_bad(run)[place]) for run, place in recommended), len(recommended)


def alert_cost(runs: Sequence[Run], limits: Limits) -> float:
    """Sum of the four rates of `alert_counts`, 0 to 4, down."""
    return sum(errors / max(1, asked) for errors, asked in alert_counts(runs, limits).values())


def best_of(grid: Sequence[float], cost: Callable[[float], float]) -> tuple[float, float]:
    """The value of least cost, the first of equals, and its cost."""
    costs = [cost(value) for value in grid]
    return grid[costs.index(min(costs))], min(costs)


def fixed_rows(setting: Sequence[Run]) -> float:
    """The number of rows after which the setting runs are best, on average."""
    return best_of(ROWS_GRID, lambda rows: sum(float(regrets(run)[after_rows(run, rows)]) for run in setting))[0]


def fixed_passes(setting: Sequence[Run]) -> float:
    """The same in passes over the rows of what is taught."""
    return best_of(PASSES_GRID, lambda passes: sum(float(regrets(run)[after_passes(run, passes)]) for run in setting))[0]


def one_by_one(start: Any, grid: dict[str, tuple[float, ...]], cost: Callable[[Any], float], clear: float) -> list[str]:
    """A line per threshold: the cost at each value, and whether any is clearly better than what was there."""
    lines = []
    for name, values in grid.items():
        costs = [cost(replace(start, **{name: value})) for value in values]
        gain = cost(start) - min(costs)
        flat = [value for value, each in zip(values, costs, strict=True) if each <= min(costs) + clear / 2]
        lines.append(f"{name:15} was {getattr(start, name):<5} " + "  ".join(f"{value:g}: {each:.4f}" for value, each in
                                                                             zip(values, costs, strict=True))
                     + (f"   CLEAR, flat over {flat}" if gain >= clear else f"   stays (gain {gain:.4f})"))
    return lines


def main() -> None:
    setting = read_scores("setting")
    print(f"{len(setting)} setting runs; mean regret {mean_regret(setting, STUDIED):.4f}, fitted {mean_regret(setting, FITTED):.4f}; "
          f"recommended though it spills {bad_recommendations(setting, STUDIED)}, fitted {bad_recommendations(setting, FITTED)}")
    for title, start in (("as it is", STUDIED), ("as fitted", FITTED)):
        print(f"\nRule, {title}: mean regret")
        print("\n".join(one_by_one(start, RULE_GRID, lambda rule: mean_regret(setting, rule), CLEAR_REGRET)))
    print(f"\nAlerts before {alert_counts(setting, LIMITS_BEFORE)}\nAlerts now    {alert_counts(setting, Limits())}")
    for title, limits in (("from the limits before", LIMITS_BEFORE), ("from the limits now", Limits())):
        print(f"\nAlerts, {title}: sum of the four rates")
        print("\n".join(one_by_one(limits, LIMITS_GRID, lambda each: alert_cost(setting, each), CLEAR_ALERT)))
    print(f"\nFixed exposure: {fixed_rows(setting)} rows, or {fixed_passes(setting)} passes")


if __name__ == "__main__":
    main()
