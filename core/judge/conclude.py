"""From the answers on file to `scores.jsonl` and `verdict.json`, and overruling the rule by hand. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.library import Dataset
from core.errors import StudioError
from core.judge.probes import counted
from core.judge.scoring import score_step
from core.judge.verdict import Score, Verdict, choose_by_hand, judge
from core.runs import Run
from core.workspace import write_json, write_jsonl


def write_verdict(run: Run, dataset: Dataset, probes: Sequence[dict[str, Any]], steps: Sequence[int]) -> Verdict:
    """Score the answers on file and choose; added probes do not count, and a choice made by hand stays.

    Args:
        probes: as `probes_of` gives them.
        steps: the steps that have answered every one of them; 0, the base, among them.
    """
    answers: dict[int, dict[str, str]] = {step: {} for step in steps}
    for record in run.answers():
        if record["step"] in answers:
            answers[record["step"]][record["probe"]] = record["text"]
    scores = [score_step(step, counted(probes), answers[step], answers[0], dataset) for step in steps]
    verdict = judge(scores)
    before = run.verdict()
    if before is not None and before["chosen_by"] == "hand" and before["pick"]["step"] in steps:
        verdict = choose_by_hand(verdict, scores, before["pick"]["step"])
    write_jsonl(run.folder / "scores.jsonl", [score.model_dump() | {"learned": score.learned, "kept": score.kept,
                                                                    "score": score.score} for score in scores])
    write_json(run.folder / "verdict.json", verdict.model_dump())
    return verdict


def read_scores(run: Run) -> list[Score]:
    """The scores on file, ascending by step; the first is the base's."""
    return [Score.model_validate(record) for record in run.scores()]


def choose_step(run: Run, step: int | None) -> Verdict:
    """Write the choice of `step` into the verdict; None gives the choice back to the rule.

    Raises:
        StudioError: the run is not judged yet, or the step was not scored.
    """
    scores = read_scores(run)
    if run.verdict() is None or not scores:
        raise StudioError("The run {run} is not judged yet.", "Run `sweetspot judge {run}` first.", run=run.id)
    if step is not None and step not in [score.step for score in scores if score.step > 0]:
        raise StudioError("The run {run} has no score for step {step}.", "Scored: {steps}.", run=run.id, step=step,
                          steps=", ".join(str(score.step) for score in scores if score.step > 0))
    verdict = judge(scores)
    if step is not None and step != verdict.pick.step:
        verdict = choose_by_hand(verdict, scores, step)
    write_json(run.folder / "verdict.json", verdict.model_dump())
    return verdict
