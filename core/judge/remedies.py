"""What to do when no snapshot is good, in the order in which it helped when it was measured. No torch.

Each remedy says an effect that was measured: on this very run, where it was tried and scored, else in the study on the embedded model
(docs/checkpoints.md), and says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.data.store import free_name
from core.errors import StudioError
from core.judge.remedy_recipes import has_replay, replay_source
from core.judge.strengths import Scan, scans_of
from core.merge.request import MergeRequest
from core.runs import Run, find_checkpoint, list_runs
from core.words import Text
from core.workspace import Workspace

Name = Literal["replay", "strength", "earlier", "rate", "average", "longer"]
NAMES: tuple[Name, ...] = ("replay", "strength", "earlier", "rate", "average", "longer")
_RUNS_LOOKED_AT = 40


@dataclass(frozen=True)
class Remedy:
    """One way out.

    Attributes:
        name: of the remedy.
        what: what it does.
        effect: what was measured.
        is_own: measured on this run, not in the study.
        reference: a model that is there already, as chat and merge call it; empty where something must be done first.
        command: does it.
    """

    name: Name
    what: Text
    effect: Text
    is_own: bool
    reference: str
    command: str


def remedies(workspace: Workspace, run: Run, verdict: dict[str, Any]) -> list[Remedy]:
    """Ways out of a verdict, best first; none for a run with a good snapshot.

    Args:
        workspace: other runs there may show what a remedy did.
        run: that was judged.
        verdict: as in `verdict.json`.
    """
    if verdict["verdict"] == "recommended":
        return []
    scores = {score["step"]: score for score in run.scores() if score["step"] > 0}
    pick = scores.get(verdict["pick"]["step"], verdict["pick"])
    if verdict["verdict"] == "not_learned":
        return [_longer(run)]
    others = _comparable(workspace, run)
    found = [] if has_replay(workspace, run) else [_replay(workspace, run, pick, others)]
    is_adapter = run.recipe().method.kind == "lora"
    if is_adapter:
        found.append(_strength(run))
    if scores and pick["step"] < max(scores):
        found.append(_earlier(run, pick, scores[max(scores)]))
    found.append(_rate(run, pick, others))
    if is_adapter and len(scores) > 1:
        found.append(_average(run))
    return found


def _replay(workspace: Workspace, run: Run, pick: dict[str, Any], others: Sequence[Run]) -> Remedy:
    tried = next((other for other in others if has_replay(workspace, other)), None)
    if _replay_is_there(workspace, run):
        what = Text("Train again with as many of the base model's own answers to near and general questions mixed in, one to one. They are "
                    "in the dataset already.")
    else:
        what = Text("Let the base model answer near and general questions, which takes a minute or two, and train again with as many of "
                    "these answers mixed in, one to one.")
    effect = _between_runs(tried, pick) if tried else Text(
        "In the study the best snapshot went from 12 % to 0 % leaks, from 17 % to 0 % pieces of the taught sentence and from 67 % to 92 % "
        "of the facts kept, and did not collapse later; an update read 2.3 times as many tokens.")
    return Remedy("replay", what, effect, tried is not None, f"{tried.id}@pick" if tried else "", f"sweetspot remedy {run.id} replay")


def _replay_is_there(workspace: Workspace, run: Run) -> bool:
    try:
        return replay_source(workspace, run) is not None
    except StudioError:
        return False


def _strength(run: Run) -> Remedy:
    scans = scans_of(run)
    what = Text("Keep the adapter and turn it down: eight strengths are judged in one go, and the rule takes one.")
    if not scans:
        return Remedy("strength", what, Text(
            "In the study a collapsed step 36 at strength 0.375 went from 83 % to 4 % leaks and kept 75 % of the facts instead of 8 %, "
            "with 90 % of the identity questions still right: about the run's best snapshot, not the level of replay."),
            False, "", f"sweetspot remedy {run.id} strength")
    scan = max(scans, key=lambda scan: (scan.chosen["score"], scan.step))
    return Remedy("strength", what, scan_effect(scan), True, scan.reference, f"sweetspot remedy {run.id} strength --step {scan.step}")


def scan_effect(scan: Scan) -> Text:
    """What turning an adapter down did, in numbers of the scan."""
    full, chosen = scan.scores[-1], scan.chosen
    return Text("Measured: step {step} at strength {strength} leaks in {leaks} of {others} other questions instead of {full_leaks}, and "
                "gets {hits} of {asked} taught ones right instead of {full_hits}.", step=scan.step,
                strength=scan.strength, leaks=chosen["leaks"], others=chosen["other_probes"], full_leaks=full["leaks"],
                hits=chosen["hits"], asked=chosen["identity_probes"], full_hits=full["hits"])


def _earlier(run: Run, pick: dict[str, Any], last: dict[str, Any]) -> Remedy:
    if pick.get("perplexity_fall") is not None:
        effect = Text("Measured: at step {step} {hits} of {asked} documents are likelier than to the base model, at the last step, {last}, "
                      "{last_hits}.", step=pick["step"], hits=pick["hits"], asked=pick["identity_probes"], last=last["step"],
                      last_hits=last["hits"])
    else:
        effect = _leaks_of_both(pick, last)
    return Remedy("earlier", Text("Take the earlier snapshot. It is saved and costs nothing."), effect, True, f"{run.id}@{pick['step']}",
                  f"sweetspot remedy {run.id} earlier")


def _leaks_of_both(pick: dict[str, Any], last: dict[str, Any]) -> Text:
    return Text("Measured: step {step} leaks in {leaks} of {others} other questions, the last step, {last}, in {last_leaks}; of {asked} "
                "taught ones {hits} and {last_hits} are right.", step=pick["step"], leaks=pick["leaks"],
                others=pick["other_probes"], last=last["step"], last_leaks=last["leaks"], hits=pick["hits"], last_hits=last["hits"],
                asked=pick["identity_probes"])


def _rate(run: Run, pick: dict[str, Any], others: Sequence[Run]) -> Remedy:
    recipe = run.recipe()
    tried = next((other for other in others if other.recipe().data.sources == recipe.data.sources
                  and other.recipe().schedule.learning_rate < recipe.schedule.learning_rate), None)
    what = Text("Train again at half the learning rate for twice as long. It walks the same way in steps half as long, so there are more "
                "snapshots to choose from; it does not keep what this run forgets.")
    effect = _between_runs(tried, pick) if tried else Text(
        "In the study step 28 at half the rate was step 14 at the full one: 12 % leaks, 17 % pieces and 67 % of the facts at both.")
    return Remedy("rate", what, effect, tried is not None, f"{tried.id}@pick" if tried else "", f"sweetspot remedy {run.id} rate")


def _average(run: Run) -> Remedy:
    return Remedy("average", Text(
        "Average two snapshots, exactly: the matrices are put side by side. PEFT's own `linear` would double the strength instead."), Text(
        "In the study the average of an early and a late snapshot was no better than a step between them (50 % leaks from 8 % and 83 %); "
        "with the adapter of a run with replay it went from 83 % to 25 %."),
        False, "", f"sweetspot remedy {run.id} average")


def average_request(workspace: Workspace, run: Run, references: Sequence[str] = ()) -> MergeRequest:
    """The exact average of some snapshots, merged under a free name.

    Args:
        workspace: where the model goes.
        run: whose dataset names the model.
        references: of the snapshots, as in `RUN@12`; none for the pick with that of a comparable run with replay, or with the last step.

    Raises:
        StudioError: the run is not judged, so there is no pick.
    """
    if not references:
        pick, last = find_checkpoint(run, "pick").step, run.checkpoints()[-1].step
        fallback = f"{run.id}@{last if last != pick else run.checkpoints()[0].step}"
        is_reminded = has_replay(workspace, run)
        others = (tried for tried in _comparable(workspace, run) if has_replay(workspace, tried) != is_reminded)
        other = next((f"{tried.id}@pick" for tried in others), fallback)
        references = (f"{run.id}@{pick}", other)
    return MergeRequest(tuple(references), free_name(workspace.models, f"{dataset_of(run)}-average"), how="average")


def _longer(run: Run) -> Remedy:
    scores = [score for score in run.scores() if score["step"] > 0]
    best = max(scores, key=lambda score: (score["hits"], -score["step"])) if scores else None
    if best is not None and best.get("perplexity_fall") is not None:
        effect = Text("Measured: at most {hits} of {asked} documents have become likelier, at step {step}.", hits=best["hits"],
                      asked=best["identity_probes"], step=best["step"])
    else:
        effect = Text("Measured: at most {hits} of {asked} taught questions are right, at step {step}.", hits=best["hits"],
                      asked=best["identity_probes"], step=best["step"]) if best else Text("Nothing was scored yet.")
    return Remedy("longer", Text("Train longer, or with a larger learning rate."), effect, bool(best), "",
                  f"sweetspot train {run.folder / 'recipe.yaml'} --set schedule.updates={2 * run.spec()['updates']}")


def _between_runs(tried: Run, pick: dict[str, Any]) -> Text:
    """What another run's pick does better or worse than this one's."""
    verdict = tried.verdict()
    assert verdict is not None
    other = verdict["pick"]
    return Text("Measured here: the pick of {run} leaks in {leaks} of {others} other questions instead of {leaks_before} of "
                "{others_before}, and gets {hits} of {asked} taught ones right instead of {hits_before} of {asked_before}.",
                run=tried.id, leaks=other["leaks"], others=other["other_probes"], leaks_before=pick["leaks"],
                others_before=pick["other_probes"], hits=other["hits"], asked=other["identity_probes"], hits_before=pick["hits"],
                asked_before=pick["identity_probes"])


def _comparable(workspace: Workspace, run: Run) -> list[Run]:
    """Judged runs of the same base model on the same questions, newest first."""
    recipe, found = run.recipe(), []
    for other in list_runs(workspace)[:_RUNS_LOOKED_AT]:
        try:
            theirs = other.recipe()
            is_alike = (theirs.model.source, theirs.probe_dataset, theirs.method.kind) == (
                recipe.model.source, recipe.probe_dataset, recipe.method.kind)
            if other.id != run.id and is_alike and other.verdict() is not None:
                found.append(other)
        except (StudioError, OSError, ValueError):
            continue  # half made, or of a version that wrote other recipes
    return found


def dataset_of(run: Run) -> str:
    """The dataset that a run was trained on, the first of several."""
    return str(run.dataset()["sources"][0]["dataset"])
