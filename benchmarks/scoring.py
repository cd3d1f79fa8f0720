"""Judging many checkpoints at once: the speed of it, and that it says the same.

    python -m benchmarks.scoring RUN                   eight checkpoints stacked against one by one, token by token the same
    python -m benchmarks.scoring RUN --snapshots 12    and a quick judging of so many snapshots, from loading to the verdict

RUN is a finished LoRA run of the workspace (SWEETSPOT_HOME), `sweetspot lesson` makes one. The run itself is not touched: the judging
is of a copy. Both ways are timed in one process, each twice, and the better time counts; loading is not timed. A busy machine still
disturbs them, so it says how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from core.chat.engine import Answer, Engine, Row
from core.chat.stacked import Adapter
from core.data.encode import Encoder
from core.jobs.folder import create_job
from core.jobs.worker import Recorder
from core.judge.probes import probes_of
from core.judge.worker import judge_run
from core.models.catalogue import find_base
from core.models.load import choose_device, choose_dtype
from core.runs import Run, find_run
from core.workspace import Workspace

_ROUNDS = 2


def stacked_against_alone(workspace: Workspace, run: Run, checkpoints: int, questions: int) -> dict[str, float | int]:
    """Seconds to answer some probes by all checkpoints stacked, and by each alone; the answers must be the same."""
    recipe = run.recipe()
    base = find_base(workspace, recipe.model.source)
    encoder = Encoder.from_folder(base, recipe.data.system)
    device = choose_device(recipe.device.kind)
    settings = {"end_ids": encoder.end_ids, "pad_id": encoder.pad_id(), "dtype": choose_dtype(recipe.model.dtype, device), "device": device}
    found = run.checkpoints()[-checkpoints:]
    prompts = [encoder.encode_prompt(probe["messages"]) for probe in probes_of(workspace, run)[1][:questions]]
    alone, one_by_one = [], 0.0
    for entry in found:
        answers, seconds = _best(Engine.load(base, [Adapter(str(entry.step), entry.folder)], **settings), prompts, 1,
                                 recipe.probes.max_new_tokens)
        alone += answers
        one_by_one += seconds
    engine = Engine.load(base, [Adapter(str(entry.step), entry.folder) for entry in found], **settings)
    together, stacked = _best(engine, prompts, len(found), recipe.probes.max_new_tokens)
    differing = sum(one.ids != other.ids for one, other in zip(together, alone, strict=True))
    assert differing == 0, f"{differing} of {len(alone)} answers differ"
    return {"checkpoints": len(found), "questions": len(prompts), "tokens": sum(len(answer.ids) for answer in together),
            "stacked_seconds": round(stacked, 2), "one_by_one_seconds": round(one_by_one, 2),
            "times_faster": round(one_by_one / stacked, 2), "differing_answers": differing}


def _best(engine: Engine, prompts: list[list[int]], slots: int, tokens: int) -> tuple[list[Answer], float]:
    """Every slot's answers to all prompts, and the seconds of the quickest of some rounds; loading is not counted."""
    quickest = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        answers = engine.answer([Row(slot, prompt) for slot in range(slots) for prompt in prompts], tokens)
        quickest = min(quickest, time.perf_counter() - began)
    return answers, quickest


def quick_judging(workspace: Workspace, run: Run, snapshots: int) -> dict[str, float | int | str]:
    """Seconds from nothing to the verdict of a quick judging, the base model's answers included."""
    with tempfile.TemporaryDirectory() as place:
        copy = Workspace.open(place)
        for name in ("models", "datasets"):
            (copy.root / name).rmdir()
            (copy.root / name).symlink_to(workspace.root / name)
        folder = copy.runs / run.id
        shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoints", "answers.jsonl", "forced.jsonl", "verdict.json"))
        saved = run.checkpoints()
        for place_of in range(snapshots):  # evenly spread, the last one among them
            entry = saved[-1 - place_of * len(saved) // snapshots]
            shutil.copytree(entry.folder, folder / "checkpoints" / entry.folder.name)
        own = Run(folder)
        job = create_job(copy.jobs / "quick", "judge", {"run": run.id})
        began = time.perf_counter()
        verdict = judge_run(copy, own, Recorder(job, job.state()), quick=True)
        seconds = time.perf_counter() - began
        if verdict is None:
            raise RuntimeError("the judging was stopped")
        return {"snapshots": len(own.checkpoints()), "questions": verdict.pick.identity_probes + verdict.pick.other_probes,
                "seconds": round(seconds, 1), "verdict": verdict.verdict, "step": verdict.pick.step}


def main() -> None:
    """Print the numbers as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--snapshots", type=int, default=0, help="also time a quick judging of so many")
    options = parser.parse_args()
    workspace = Workspace.open()
    run = find_run(workspace, options.run)
    found: dict[str, object] = {"load_before": round(os.getloadavg()[0], 1), "processors": os.cpu_count(), "base": Path(
        find_base(workspace, run.recipe().model.source)).name}
    found["answers"] = stacked_against_alone(workspace, run, options.checkpoints, options.questions)
    if options.snapshots:
        found["quick"] = quick_judging(workspace, run, options.snapshots)
    found["load_after"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
