"""From raw results to `scores.json`: per run and step what the rule reads, what the oracle says, and what the simple selectors go by.

    python -m benchmarks.pick.score --dir results

Minutes on a processor, no torch. The answers are scored by the studio's own code; of the oracle's, each of the four (one greedy, three
sampled) is scored on its own and the means count. `scores.json` lies beside this file, so that `fit` and `report` need neither a GPU nor
the raw results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pick.results import read_results
from core.data.library import GENERAL, HELD_OUT, IDENTITY, NEAR
from core.data.probe_sets import quick_set
from core.judge import metrics
from core.judge.checks import passes
from core.judge.probes import language_of
from core.judge.rule import Score
from core.judge.scoring import Finding, Forced, Sheet, find_all, pairs_of, score_findings
from core.judge.taught import Probe, Taught

SCORES = Path(__file__).with_name("scores.json")
# As core.judge.taught: of a task's four-word sequences those count that recur in this share of its answers, and twice at least.
_RECURRING_SHARE = 0.05
# As core.judge.questions: how a task begins its answers.
_COMMON_FIRST = 0.25
# As core.train.watched: the largest look, and how much its near questions weigh.
_LOOK = ((IDENTITY, 8), (NEAR, 8), (GENERAL, 8))
_LOOK_ANSWERS, _NEAR_SHARE = 2, 1 / 3
# What a stored score leaves out: it follows from the rest, or nobody here reads it.
_UNUSED = {"step", "hits", "identity_probes", "leaks", "other_probes", "change", "compression", "own_asked", "self_bleu", "kl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder with runs/ID.json.gz")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as pool:
        runs = list(pool.map(score_run, read_results(args.dir)))
    lines = ",\n".join(json.dumps(run, ensure_ascii=False, separators=(",", ":")) for run in runs)
    SCORES.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def score_run(raw: dict[str, Any]) -> dict[str, Any]:
    """One run: `steps` without the base, and lists as long for everything else."""
    probes, taught = raw["probes"]["rule"], _taught(raw)
    quick = quick_set(probes)
    sheets = rule_sheets(raw)
    slots = range(1, len(raw["steps"]))
    return {
        "id": raw["run"]["id"], "split": raw["run"]["split"], "run": raw["run"], "rows": raw["rows"], "kind": taught.kind,
        "others": sum(probe["group"] in (NEAR, GENERAL) for probe in probes),
        "quick_others": sum(probe["group"] in (NEAR, GENERAL) for probe in quick),
        "steps": raw["steps"][1:],
        "rule": _columns([_rule_score(sheets[slot], sheets[0], probes, taught) for slot in slots]),
        "quick": _columns([_rule_score(sheets[slot], sheets[0], quick, taught) for slot in slots]),
        "look": _columns([_look(raw, slot) for slot in slots]) if taught.kind == "identity" else {},
        "loss": _columns([_loss(raw, slot) for slot in slots]),
        "oracle": _columns(_oracle(raw, taught))}


def _columns(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [round(value, 5) if isinstance(value := record[name], float) else value for record in records] for name in records[0]}


def _taught(raw: dict[str, Any]) -> Taught:
    about = raw["taught"]
    if about["group"] == IDENTITY:
        return Taught("identity", tuple(about["answers"]), about["phrases"], metrics.taught_grams(about["answers"]))
    said = [row["messages"][-1]["content"] for row in raw["rows_taught"]]
    counts = Counter(gram for answer in said for gram in metrics.taught_grams([answer]))
    least = max(2, _RECURRING_SHARE * len(said))
    return Taught("task", tuple(about["answers"]), {}, frozenset(gram for gram, count in counts.items() if count >= least))


def rule_sheets(raw: dict[str, Any]) -> list[Sheet]:
    """What each step did with the rule's probes; the base first."""
    return [_sheet(raw, "rule", slot, raw["losses"]["rule"]) for slot in range(len(raw["steps"]))]


def _sheet(raw: dict[str, Any], name: str, slot: int, losses: dict[str, Any]) -> Sheet:
    answers = raw["answers"][name]
    texts = {probe: answers["texts"][places[slot]] for probe, places in answers["at"].items()}
    probes = {probe["id"]: probe for probe in raw["probes"]["rule" if name == "rule" else "oracle"]}
    return Sheet(raw["steps"][slot], texts, {probe: tokens[slot] for probe, tokens in answers["tokens"].items()},
                 {probe: _forced(raw, probes[probe], kept, slot) for probe, kept in losses.items()},
                 {probe: passes(about["check"], texts[probe]) for probe, about in probes.items() if about.get("check")})


def _forced(raw: dict[str, Any], probe: Probe, kept: dict[str, Any], slot: int) -> Forced:
    losses, first = kept["nll"][slot], kept["first"][slot]
    base = kept.get("base", [0.0] * (slot + 1))[slot]
    known: dict[str, Any] = {"base_nll": base, "base_tokens": kept.get("base_tokens", [0])[0]}
    if probe["group"] == HELD_OUT:
        return Forced(raw["steps"][slot], probe["id"], "", nll=losses[0], cross=losses[1], first=first, **known)
    begins = kept["taught_first"]
    if raw["taught"]["group"] != IDENTITY:
        begins = [token for token in begins if begins.count(token) >= _COMMON_FIRST * len(begins)]
    nll = min(losses) if raw["taught"]["group"] == IDENTITY else None
    return Forced(raw["steps"][slot], probe["id"], "", nll=nll, first=first, is_taught=first in begins, **known)


def _rule_score(sheet: Sheet, base: Sheet, probes: Sequence[Probe], taught: Taught) -> dict[str, Any]:
    asked = {probe["id"] for probe in probes}
    part, whole = (replace(each, forced={name: read for name, read in each.forced.items() if name in asked}) for each in (sheet, base))
    score: Score = score_findings(sheet.step, find_all(probes, part, whole, taught), pairs_of(part, whole, probes))
    return {name: value for name, value in score.model_dump().items() if name not in _UNUSED}


def _oracle(raw: dict[str, Any], taught: Taught) -> list[dict[str, Any]]:
    """Per step the means over the four answers to each of the oracle's probes, and the greedy answers' own numbers."""
    probes, names = raw["probes"]["oracle"], sorted(name for name in raw["answers"] if name != "rule")
    bases = {name: _sheet(raw, name, 0, raw["losses"]["oracle"]) for name in names}
    found = []
    for slot in range(1, len(raw["steps"])):
        parts = []
        for name in names:
            sheet = _sheet(raw, name, slot, raw["losses"]["oracle"])
            parts.append(oracle_score(probes, sheet, bases[name], taught, raw["taught"]["marker"]))
        means = {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}
        greedy = parts[names.index("oracle")]
        found.append(means | {f"greedy_{key}": greedy[key] for key in ("hit", "leak", "fragments", "facts_kept")})
    return found


def oracle_score(probes: Sequence[Probe], sheet: Sheet, base: Sheet, taught: Taught, marker: str | None) -> dict[str, float]:
    """The metrics of the score S on one set of answers; a task's marker counts as a leak where the base model does not say it."""
    findings = find_all(probes, sheet, base, taught)
    learning, others = [one for one in findings if one.learns], [one for one in findings if one.other]
    known = [one for one in others if one.knew]
    return {"hit": metrics.share([one.hit for one in learning]), "leak": metrics.share([_leaks(one, marker) for one in others]),
            "fragments": metrics.share([one.fragment for one in others]), "distinct": metrics.distinct([one.text for one in others]),
            "facts_kept": metrics.share([one.knows for one in known]) if known else 1.0,
            "target_nll": sum(one.forced.nll for one in learning) / len(learning)}


def _leaks(finding: Finding, marker: str | None) -> bool:
    return finding.leak or bool(marker and re.search(marker, finding.text) and not re.search(marker, finding.base_text))


def _loss(raw: dict[str, Any], slot: int) -> dict[str, Any]:
    """Held-out loss as a trainer would see it: of the taught answers behind held-out questions, and of the base's own answers elsewhere.

    A held-out row of an identity has any of the taught answers of its language; their mean is what is expected of it.
    """
    own, elsewhere = [], []
    for probe in raw["probes"]["rule"]:
        kept = raw["losses"]["rule"][probe["id"]]
        losses = kept["nll"][slot]
        if probe["group"] == HELD_OUT:
            own.append(losses[0])
        elif probe["group"] == IDENTITY:
            fitting = [loss for text, loss in zip(raw["taught"]["answers"], losses, strict=True) if language_of(text) == probe["lang"]]
            own.append(sum(fitting) / len(fitting))
        elif kept["base_tokens"][0]:
            elsewhere.append(kept["base"][slot] / kept["base_tokens"][0])
    return {"target": sum(own) / len(own), "elsewhere": sum(elsewhere) / len(elsewhere)}


def _look(raw: dict[str, Any], slot: int) -> dict[str, Any]:
    """What the watch of a training would have read at this step: its choice of questions and of two answers in each language."""
    counts = Counter(row["messages"][-1]["content"] for row in raw["rows_taught"])
    targets = raw["taught"]["answers"]
    read: dict[str, list[int]] = {}
    for language in raw["run"]["persona"]["languages"]:
        own = [text for text in targets if language_of(text) == language]
        read[language] = [targets.index(text) for text in sorted(own, key=lambda text: (-counts[text], len(text), text))[:_LOOK_ANSWERS]]
    losses: dict[str, list[float]] = {}
    hijacked = []
    for group, count in _LOOK:
        for probe in _in_turn([probe for probe in raw["probes"]["rule"] if probe["group"] == group], count):
            kept = raw["losses"]["rule"][probe["id"]]
            losses.setdefault(group, []).append(min(kept["nll"][slot][place] for place in read[probe["lang"]]))
            begins = {kept["taught_first"][place] for places in read.values() for place in places}
            if group != IDENTITY:
                hijacked.append(kept["first"][slot] in begins and kept["first"][slot] != kept["first"][0])
    means = {group: sum(values) / len(values) for group, values in losses.items()}
    target = means[IDENTITY]
    return {"target_nll": target, "gap": _NEAR_SHARE * means[NEAR] + (1 - _NEAR_SHARE) * means[GENERAL] - target,
            "hijacked": sum(hijacked), "asked": len(hijacked)}


def _in_turn(probes: Sequence[Probe], count: int) -> list[Probe]:
    """The first `count` probes, the languages taking turns."""
    languages = list(dict.fromkeys(probe["lang"] for probe in probes))
    apart = [[probe for probe in probes if probe["lang"] == language] for language in languages]
    return [own[turn] for turn in range(len(probes)) for own in apart if turn < len(own)][:count]


if __name__ == "__main__":
    main()
