"""The work of a `judge` job: ask every probe of every checkpoint, score the answers, leave the verdict in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.chat.engine import Engine, Row
from core.chat.stacked import Adapter
from core.data.encode import Encoder
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.conclude import write_verdict
from core.judge.probes import probes_of
from core.judge.scoring import Probe
from core.judge.verdict import Verdict
from core.models.catalogue import find_base
from core.models.load import choose_device, choose_dtype
from core.runs import Run, find_run
from core.words import Text
from core.workspace import Workspace, append_jsonl

# Rows decoded together; bounds the memory of the cache: 160 rows of 80 tokens take 0.6 GB on the embedded model.
_ROWS_PER_BATCH = 160


def judge_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Judge the run named in the job's spec."""
    run = find_run(workspace, job.spec()["run"])
    verdict = judge_run(workspace, run, recorder)
    return {"verdict": verdict.verdict, "step": verdict.pick.step} if verdict else {}


def judge_run(workspace: Workspace, run: Run, recorder: Recorder) -> Verdict | None:
    """Score every checkpoint of `run` and choose; None when asked to stop before the end.

    Answers are appended to `answers.jsonl` batch by batch, so a judge that was killed goes on where it was.
    """
    dataset, probes = probes_of(workspace, run)
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise StudioError("The run {run} has no checkpoint to judge.", "Let it train until its first snapshot.", run=run.id)
    steps = [0, *(checkpoint.step for checkpoint in checkpoints)]
    known = {(record["step"], record["probe"]) for record in run.answers()}
    missing = [(step, probe) for probe in probes for step in steps if (step, probe["id"]) not in known]
    done = len(steps) * len(probes) - len(missing)
    recorder.progress(done, len(steps) * len(probes), Text("asking the probes"))
    for batch in _answer(workspace, run, missing):
        for record in batch:
            append_jsonl(run.folder / "answers.jsonl", record)
        done += len(batch)
        recorder.progress(done, len(steps) * len(probes), Text("asking the probes"))
        if recorder.stop_requested():
            return None
    return write_verdict(run, dataset, probes, steps)


def _answer(workspace: Workspace, run: Run, missing: list[tuple[int, Probe]]) -> Iterator[list[dict[str, Any]]]:
    """Greedy answers to the missing (step, probe) pairs, in batches."""
    if not missing:
        return
    recipe = run.recipe()
    base = find_base(workspace, recipe.model.source)
    encoder = Encoder.from_folder(base, recipe.data.system)
    folders = {checkpoint.step: checkpoint.folder for checkpoint in run.checkpoints()}
    device = choose_device(recipe.device.kind)
    settings = {"end_ids": encoder.end_ids, "pad_id": encoder.pad_id(), "dtype": choose_dtype(recipe.model.dtype, device),
                "device": device}

    def ask(engine: Engine, pairs: list[tuple[int, Probe]], slots: dict[int, int]) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, len(pairs), _ROWS_PER_BATCH):
            part = pairs[start:start + _ROWS_PER_BATCH]
            rows = [Row(slots[step], encoder.encode_prompt(probe["messages"])) for step, probe in part]
            answers = engine.answer(rows, recipe.probes.max_new_tokens)
            yield [{"step": step, "probe": probe["id"], "text": encoder.decode(answer.ids).strip(), "ended": answer.ended,
                    "tokens": len(answer.ids)} for (step, probe), answer in zip(part, answers, strict=True)]

    steps = sorted({step for step, _ in missing})
    if recipe.method.kind == "lora":
        adapters = [Adapter(str(step), folders.get(step)) for step in steps]
        engine = Engine.load(base, adapters, quantization=recipe.model.quantization, **settings)
        yield from ask(engine, missing, {step: slot for slot, step in enumerate(steps)})
        return
    for step in steps:  # whole models cannot share a base: one after the other
        engine = Engine.load(folders.get(step, base), [Adapter("model")], **settings)
        yield from ask(engine, [pair for pair in missing if pair[0] == step], {step: 0})
