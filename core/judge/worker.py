"""The work of a `judge` job: ask every probe of every checkpoint, score the answers, leave the verdict in the run's folder.

Answers are appended to `answers.jsonl`, readings to `forced.jsonl` and the outcomes of checks to `checks.jsonl` as they come, so a
judging that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.encode import Encoder, hash_ids
from core.data.library import Dataset
from core.data.probe_sets import quick_set
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.asking import Asking, base_prints
from core.judge.checks import passes
from core.judge.conclude import write_verdict
from core.judge.endpoint import Endpoint
from core.judge.probes import counted, probes_of
from core.judge.questions import Asked, questions_for, taught_first_tokens
from core.judge.scoring import read_sheets
from core.judge.taught import Probe, taught_by
from core.judge.verdict import Verdict
from core.models.catalogue import find_base
from core.runs import Run, find_run
from core.words import Text
from core.workspace import Workspace, append_jsonl, read_jsonl


def judge_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Judge the run named in the job's spec."""
    spec = job.spec()
    run = find_run(workspace, spec["run"])
    verdict = judge_run(workspace, run, recorder, bool(spec.get("quick")), bool(spec.get("endpoint")))
    return {"verdict": verdict.verdict, "step": verdict.pick.step} if verdict else {}


def judge_run(workspace: Workspace, run: Run, recorder: Recorder, quick: bool = False, may_ask_endpoint: bool = False) -> Verdict | None:
    """Score every checkpoint of `run` and choose; None when asked to stop before the end.

    Args:
        quick: ask fewer probes.
        may_ask_endpoint: whether checks by a stronger model may be made.
    """
    dataset, probes = probes_of(workspace, run)
    if not run.checkpoints():
        raise StudioError("The run {run} has no checkpoint to judge.", "Let it train until its first snapshot.", run=run.id)
    return Judging(workspace, run, recorder, dataset, quick_set(probes) if quick else probes).finish(quick, may_ask_endpoint)


@dataclass
class Judging:
    """One judging in progress."""

    workspace: Workspace
    run: Run
    recorder: Recorder
    dataset: Dataset
    probes: Sequence[Probe]

    def finish(self, quick: bool, may_ask_endpoint: bool) -> Verdict | None:
        """Whatever is missing, then the verdict; None when asked to stop."""
        self.steps = [0, *(checkpoint.step for checkpoint in self.run.checkpoints())]
        recipe = self.run.recipe()
        self.base = find_base(self.workspace, recipe.model.source)
        self.encoder = Encoder.from_folder(self.base, recipe.data.system)
        if not self.encoder.template:
            self.probes = []  # a base model is asked nothing; it reads
        self.asking = Asking(self.workspace, self.run, self.encoder)
        if not (self._answer() and self._read(quick)):
            return None
        self._check(may_ask_endpoint)
        return write_verdict(self.run, self.dataset, self.probes, self.steps, quick)

    def _answer(self) -> bool:
        """Greedy answers where they are missing; False when asked to stop."""
        prints = {probe["id"]: hash_ids(self.encoder.encode_prompt(probe["messages"])) for probe in self.probes}
        known = {(record["step"], record["probe"]) for record in self.run.answers()
                 if record.get("asked", prints.get(record["probe"])) == prints.get(record["probe"])}
        cache = BaseAnswers(self.workspace, self.base, self.encoder, self.asking)
        total = len(self.steps) * len(self.probes)
        for probe in self.probes:
            if (0, probe["id"]) not in known and (kept := cache.get(prints[probe["id"]])):
                append_jsonl(self.run.folder / "answers.jsonl", {"step": 0, "probe": probe["id"], **kept})
                known.add((0, probe["id"]))
        missing = [(step, probe) for probe in self.probes for step in self.steps if (step, probe["id"]) not in known]
        done = total - len(missing)
        self.recorder.progress(done, total, Text("asking the probes"))
        for batch in self.asking.answer(missing):
            for record in batch:
                append_jsonl(self.run.folder / "answers.jsonl", record)
                if record["step"] == 0:
                    cache.put(record)
            done += len(batch)
            self.recorder.progress(done, total, Text("asking the probes"))
            if self.recorder.stop_requested():
                return False
        return True

    def _read(self, quick: bool) -> bool:
        """Likelihoods where they are missing; False when asked to stop. A quick look leaves the base's own answers out."""
        sheets = read_sheets(self.run, self.steps)
        asked_probes = counted(self.probes)
        taught = taught_by(self.dataset, asked_probes)
        asked = questions_for(self.encoder, self.dataset, asked_probes, taught, {} if quick else sheets[0].texts)
        taught_first = taught_first_tokens(self.encoder, taught, self.probes[0]["messages"]) if self.probes else set()

        def is_missing(step: int, entry: Asked) -> bool:
            kept = sheets[step].forced.get(entry.probe)
            return kept is None or (kept.asked != entry.fingerprint and not (quick and kept.base_tokens))

        steps = [step for step in self.steps if any(is_missing(step, entry) for entry in asked)]
        entries = [entry for entry in asked if any(is_missing(step, entry) for step in self.steps)]
        total, done = len(self.steps) * len(asked), len(self.steps) * len(asked) - len(steps) * len(entries)
        self.recorder.progress(done, total, Text("reading how likely they find the answers"))
        if not entries:
            return True
        for batch in self.asking.read(entries, steps, taught_first):
            for forced in batch:
                append_jsonl(self.run.folder / "forced.jsonl", forced._asdict())
            done += len(batch)
            self.recorder.progress(done, total, Text("reading how likely they find the answers"))
            if self.recorder.stop_requested():
                return False
        return True

    def _check(self, may_ask_endpoint: bool) -> None:
        """The outcomes of the users' checks, where an answer or a check is new or could not be checked before."""
        checked = [probe for probe in self.probes if probe.get("check")]
        if not checked:
            return
        path, endpoint = self.run.folder / "checks.jsonl", Endpoint()
        kept = {(record["step"], record["probe"]): record for record in read_jsonl(path)}
        sheets = read_sheets(self.run, self.steps)
        for done, probe in enumerate(checked):
            for step in self.steps:
                answer = sheets[step].texts[probe["id"]]
                print_ = hashlib.sha256(f"{probe['check']}\n{answer}".encode()).hexdigest()[:16]
                before = kept.get((step, probe["id"]))
                if before and before["of"] == print_ and before["passed"] is not None:
                    continue
                passed = passes(probe["check"], answer)
                if "judge" in probe["check"] and may_ask_endpoint:
                    passed = endpoint.passes(probe["check"], str(probe["messages"][-1]["content"]), answer)
                append_jsonl(path, {"step": step, "probe": probe["id"], "passed": passed, "of": print_})
            self.recorder.progress(done + 1, len(checked), Text("checking the answers to your own questions"))
        if endpoint.problem:
            self.recorder.event("judge_endpoint", problem=endpoint.problem)


class BaseAnswers:
    """What a base model answered, kept for all runs of a workspace: by model, settings and prompt."""

    def __init__(self, workspace: Workspace, base: Path, encoder: Encoder, asking: Asking) -> None:
        folder = workspace.cache / "base-answers"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{base_prints(base, encoder, asking.settings())}.jsonl"
        self.known = {record["asked"]: record for record in read_jsonl(self.path)}

    def get(self, prompt: str) -> dict[str, Any] | None:
        """The answer to the prompt with this fingerprint, as it stands in `answers.jsonl`."""
        return self.known.get(prompt)

    def put(self, record: dict[str, Any]) -> None:
        if record["asked"] not in self.known:
            kept = {name: record[name] for name in ("text", "ended", "tokens", "asked")}
            self.known[record["asked"]] = kept
            append_jsonl(self.path, kept)
