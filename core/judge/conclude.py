"""From what is on file to `scores.jsonl` and `verdict.json`, and overruling the rule by hand. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.library import Dataset
from core.errors import StudioError
from core.judge.confidence import bootstrap
from core.judge.probes import counted
from core.judge.rule import RULE, Rule, Score
from core.judge.scoring import STAND_IN, Finding, Pair, Sheet, classify, find_all, pairs_of, read_sheets, score_findings
from core.judge.taught import Probe, Taught, taught_by
from core.judge.verdict import Deciding, Verdict, choose_by_hand, judge
from core.runs import Run
from core.words import Text
from core.workspace import json_text, jsonl_text, write_json, write_texts

_GOOD = {"hit", "same", "changed"}
_MOST_DECIDING = 6


def write_verdict(run: Run, dataset: Dataset, probes: Sequence[Probe], steps: Sequence[int], quick: bool = False,
                  rule: Rule = RULE) -> Verdict:
    """Score what is on file and choose; added probes count when they have a check, and a choice made by hand stays.

    Args:
        run: whose snapshots were asked.
        dataset: whose probes judge it.
        probes: as `probes_of` gives them.
        steps: the steps that have answered every one of them; 0, the base, among them.
        quick: whether only some of the probes were asked.
        rule: the thresholds.
    """
    asked, sheets = counted(probes), read_sheets(run, steps)
    taught = taught_by(dataset, asked)
    findings = {step: find_all(asked, sheets[step], sheets[0], taught) for step in steps}
    pairs = {step: pairs_of(sheets[step], sheets[0], asked, taught.kind) for step in steps}
    scores = [score_findings(step, findings[step], pairs[step]) for step in steps]
    verdict = judge(scores, rule, kind=taught.kind, quick=quick, confidence=bootstrap(findings, _complete(pairs), rule),
                    notes=[note.to_json() for note in _notes(asked, findings, pairs)])
    verdict = verdict.model_copy(update={"decided_by": _deciding(verdict, asked, sheets, taught)})
    before = run.verdict()
    if before is not None and before["chosen_by"] == "hand" and before["pick"]["step"] in steps:
        verdict = choose_by_hand(verdict, scores, before["pick"]["step"])
    records = [score.model_dump() | {"learned": score.learned, "kept": score.kept, "score": score.score} for score in scores]
    write_texts({run.folder / "scores.jsonl": jsonl_text(records), run.folder / "verdict.json": json_text(verdict.model_dump())})
    return verdict


def _complete(pairs: Mapping[int, Sequence[Pair]]) -> dict[int, Sequence[Pair]]:
    """The pairs that every step has read: a resampling draws the same ones for all."""
    common = set.intersection(*({pair.probe for pair in part} for part in pairs.values())) if pairs else set()
    return {step: sorted((pair for pair in part if pair.probe in common), key=lambda pair: pair.probe) for step, part in pairs.items()}


def _notes(probes: Sequence[Probe], findings: Mapping[int, Sequence[Finding]], pairs: Mapping[int, Sequence[Pair]]) -> list[Text]:
    """What the reader must know to weigh the verdict."""
    notes = []
    if any(pair.probe.startswith(STAND_IN) for pair in pairs[0]):
        notes.append(Text("The dataset has no held-out rows: what was learned is seen in rows that were trained on. "
                          "`sweetspot data hold-out` takes some out before a training."))
    elif not pairs[0] and not any(finding.learns for finding in findings[0]):
        notes.append(Text("Nothing asks for what was taught, so nobody could see whether it was learned."))
    if pairs[0] and not findings[0]:
        notes.append(Text("The model has no chat template, so it was asked nothing: only documents were read."))
    unanswered = {finding.probe for row in findings.values() for finding in row if finding.checked and finding.passed is None}
    if unanswered:
        notes.append(Text("{count} of {all} questions with a check do not count, because their checks could not be made.",
                          count=len(unanswered), all=sum(bool(probe.get("check")) for probe in probes)))
    return notes


def _deciding(verdict: Verdict, probes: Sequence[Probe], sheets: Mapping[int, Sheet], taught: Taught) -> list[Deciding]:
    """The questions whose answers tell the pick from the runner-up, then from the steps after and before it."""
    steps = sorted(step for step in sheets if step > 0)
    place = steps.index(verdict.pick.step)
    near = [verdict.runner_up, *steps[place + 1:place + 2], *steps[max(0, place - 1):place]]
    found: dict[str, Deciding] = {}
    for step in dict.fromkeys(step for step in near if step is not None):
        for probe in probes:
            own, other = (_read(probe, sheets[number], sheets[0], taught) for number in (verdict.pick.step, step))
            if (own in _GOOD) != (other in _GOOD) and probe["id"] not in found:
                found[probe["id"]] = Deciding(
                    probe=probe["id"], question=str(probe["messages"][-1]["content"]), step=step, reading=own, other_reading=other,
                    answer=sheets[verdict.pick.step].texts[probe["id"]], other_answer=sheets[step].texts[probe["id"]])
    return list(found.values())[:_MOST_DECIDING]


def _read(probe: Probe, sheet: Sheet, base: Sheet, taught: Taught) -> str:
    name = probe["id"]
    losses = tuple(each.forced[name].nll if name in each.forced else None for each in (sheet, base))
    return classify(probe, sheet.texts[name], base.texts[name], taught, sheet.passed.get(name), losses)


def read_scores(run: Run) -> list[Score]:
    """The scores on file, ascending by step; the first is the base's."""
    return [Score.model_validate(record) for record in run.scores()]


def choose_step(run: Run, step: int | None) -> Verdict:
    """Write the choice of `step` into the verdict; None gives the choice back to the rule.

    Raises:
        StudioError: the run is not judged yet, or the step was not scored.
    """
    scores, written = read_scores(run), run.verdict()
    if written is None or not scores:
        raise StudioError("The run {run} is not judged yet.", "Run `sweetspot judge {run}` first.", run=run.id)
    if step is not None and step not in [score.step for score in scores if score.step > 0]:
        raise StudioError("The run {run} has no score for step {step}.", "Scored: {steps}.", run=run.id, step=step,
                          steps=", ".join(str(score.step) for score in scores if score.step > 0))
    before = Verdict.model_validate(written)
    kept: dict[str, Any] = {name: getattr(before, name) for name in ("kind", "quick", "notes", "confidence", "decided_by")}
    verdict = judge(scores, **kept)
    if step is not None and step != verdict.pick.step:
        verdict = choose_by_hand(verdict, scores, step)
    write_json(run.folder / "verdict.json", verdict.model_dump())
    return verdict
