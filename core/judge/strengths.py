"""An adapter at eight strengths, judged like eight snapshots. No torch here; the judging itself is `core.judge.worker`'s.

A strength is a factor on the adapter's scale, so each of the eight is a plain adapter folder with another `lora_alpha` over the very same
weights file (a link, it takes no space). They lie under `runs/<id>/strengths/<step>/` in the layout of a run, and are asked in one batch,
read, scored and chosen from by the code and the rule that judge snapshots. Step 375 there is strength 0.375.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.jobs.active import newest_job
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.jobs.once import one_at_a_time
from core.jobs.worker import Recorder
from core.runs import Checkpoint, Run, find_checkpoint, find_run
from core.workspace import Workspace, append_jsonl, fill_folder, read_json, read_jsonl, whole_file, write_json

STRENGTHS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_ONE = 1000  # the step's number of strength 1
# What a judging keeps of each step, and that of the base and of full strength is the run's own.
_KEPT = ("answers.jsonl", "forced.jsonl", "checks.jsonl")


@dataclass(frozen=True)
class Scan:
    """What became of one adapter at its strengths.

    Attributes:
        step: of the run whose adapter it is.
        strength: that the rule takes.
        verdict: as in a run's `verdict.json`, whose steps are thousandths of strength.
        scores: of each strength, weakest first, the base model (strength 0) before them; each with its `strength`.
    """

    run: str
    step: int
    strength: float
    verdict: dict[str, Any]
    scores: list[dict[str, Any]]

    @property
    def reference(self) -> str:
        """What chat and merge call the chosen one: `RUN@36*0.375`."""
        return f"{self.run}@{self.step}" + ("" if self.strength == 1 else f"*{self.strength:g}")

    @property
    def chosen(self) -> dict[str, Any]:
        """The scores of the chosen strength."""
        return next(score for score in self.scores if score["strength"] == self.strength)


def scan_folder(run: Run, step: int) -> Path:
    return run.folder / "strengths" / f"{step:06d}"


def read_scan(run: Run, step: int) -> Scan | None:
    """The scan of a step, if it was made."""
    view = Run(scan_folder(run, step))
    verdict = view.verdict()
    if verdict is None:
        return None
    scores = [score | {"strength": score["step"] / _ONE} for score in view.scores()]
    return Scan(run.id, step, verdict["pick"]["step"] / _ONE, verdict, scores)


def scans_of(run: Run) -> list[Scan]:
    """Every scan of a run, by step."""
    steps = sorted(int(folder.name) for folder in (run.folder / "strengths").glob("[0-9]*") if folder.name.isdecimal())
    return [scan for step in steps if (scan := read_scan(run, step)) is not None]


def start_scan(workspace: Workspace, run: Run, step: str = "last") -> Job:
    """Start scanning the strengths of a step, or give the job that is doing it.

    Raises:
        StudioError: there is no such step, or the run trained whole models, which have no strength.
    """
    checkpoint = _scannable(run, step)
    with one_at_a_time(workspace, "strengths"):
        known = newest_scan(workspace, run, checkpoint.step)
        if known is not None and known.state().is_active:
            return known
        job = create_job(workspace.jobs / new_job_id("strengths", run.id), "strengths", {"run": run.id, "step": checkpoint.step},
                         run.state().device)
        start_job(job)
        return job


def newest_scan(workspace: Workspace, run: Run, step: int) -> Job | None:
    """The newest job that scans this step, whatever has become of it."""
    return newest_job(workspace, "strengths", run=run.id, step=step)


def _scannable(run: Run, step: str) -> Checkpoint:
    if run.recipe().method.kind != "lora":
        raise StudioError("The run {run} trained whole models, and only an adapter has a strength.",
                          "Average its snapshots instead, or take an earlier one.", run=run.id)
    checkpoint = find_checkpoint(run, step)
    if checkpoint.step == 0:
        raise StudioError("Step 0 is the base model, which has no adapter.", "Name a later step; `last` is the last one.")
    return checkpoint


def strengths_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Judge the adapter in the job's spec at every strength; goes on where an earlier attempt was stopped."""
    from core.judge.worker import judge_run

    spec = job.spec()
    run = find_run(workspace, spec["run"])
    view = make_view(run, _scannable(run, str(spec["step"])))
    is_quick = bool((run.verdict() or {}).get("quick"))  # as few questions as the snapshots were judged by
    if judge_run(workspace, view, recorder, is_quick) is None:
        return {}
    scan = read_scan(run, spec["step"])
    return {"strength": scan.strength, "model": scan.reference, "verdict": scan.verdict["verdict"]} if scan else {}


def make_view(run: Run, checkpoint: Checkpoint, strengths: Sequence[float] = STRENGTHS) -> Run:
    """The adapter at each strength, laid out as the snapshots of a run; what is there already stays."""
    folder = scan_folder(run, checkpoint.step)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.yaml", "dataset.json", "probes_added.jsonl"):
        if (run.folder / name).exists():
            with whole_file(folder / name) as hidden:
                shutil.copyfile(run.folder / name, hidden)
    for strength in strengths:
        target = folder / "checkpoints" / f"{round(_ONE * strength):06d}"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            with fill_folder(target) as filled:
                weaken(checkpoint.folder, filled, strength)
    _take_over(run, folder, checkpoint.step)
    return Run(folder)


def weaken(adapter: Path, target: Path, strength: float) -> None:
    """Fill `target` with the adapter at a strength: the same files, linked where the disk allows, but for its alpha."""
    for path in sorted(adapter.iterdir()):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
    config = read_json(adapter / "adapter_config.json")
    config["lora_alpha"] *= strength
    config["alpha_pattern"] = {layer: alpha * strength for layer, alpha in (config.get("alpha_pattern") or {}).items()}
    (target / "adapter_config.json").unlink()  # a link: writing through it would change the snapshot
    write_json(target / "adapter_config.json", config)


def _take_over(run: Run, folder: Path, step: int) -> None:
    """What the run's own judging has asked of the base model and of this step need not be asked again."""
    for name in _KEPT:
        path = folder / name
        known = {(record["step"], record["probe"]) for record in read_jsonl(path)}
        for record in read_jsonl(run.folder / name):
            number = {0: 0, step: _ONE}.get(record["step"])
            if number is not None and (number, record["probe"]) not in known:
                append_jsonl(path, record | {"step": number})

