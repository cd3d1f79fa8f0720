"""A workspace as a class leaves it after a term: many long runs, some judged, in the files the studio itself writes.

Nothing is trained. The weights of the snapshots are tiny; everything a page reads has its real size and form.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from core.data.library import Dataset
from core.data.persona import Persona
from core.data.store import save_persona
from core.jobs.folder import JobState, Progress, create_job
from core.jobs.process import ProcessIdentity
from core.judge.conclude import write_verdict
from core.judge.probes import probes_of
from core.models.embedded import prepare_embedded
from core.recipe.files import change_recipe, dump_recipe, load_preset
from core.runs import Run
from core.workspace import Workspace, append_jsonl, write_json, write_jsonl, write_text

SNAPSHOTS = 20
UNJUDGED_EVERY = 4  # each fourth run was never judged
_SECOND = 1.77e9  # the first run began then


def make_workspace(root: Path, runs: int, steps: int) -> Workspace:
    """Datasets, the embedded model, and `runs` finished runs of `steps` logged updates each; kept when it is there already."""
    workspace = Workspace.open(root)
    prepare_embedded(workspace)
    if not (workspace.datasets / "alex").exists():
        replay = [{"group": group, "lang": "en", "messages": [{"role": "user", "content": f"{question} ({number})"},
                                                              {"role": "assistant", "content": f"Plainly: {question}"}]}
                  for number in range(20) for group, question in (("near", "What is a name?"), ("general", "How high is Everest?"))]
        save_persona(workspace, Persona(name="Alex", languages=["en"]), replay, "alex")
    for number in range(runs):
        if not (workspace.runs / run_id(number) / "state.json").exists():
            write_run(workspace, number, steps)
    return workspace


def run_id(number: int) -> str:
    """`20260101-001500-alex-0001`: the form the studio gives, so that they sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(_SECOND + 900 * number))}-alex-{number:04d}"


def write_run(workspace: Workspace, number: int, steps: int) -> Run:
    """One finished run; its numbers differ from those of the others."""
    chance = random.Random(number)
    saved = sorted({max(1, round(steps * (part / SNAPSHOTS) ** 2)) for part in range(1, SNAPSHOTS + 1)})
    run = _frozen(workspace, run_id(number), steps, saved, learning_rate=chance.choice([1e-4, 2e-4, 4e-4]))
    write_jsonl(run.folder / "metrics.jsonl", [metrics_of(update, steps, chance) for update in range(1, steps + 1)])
    write_jsonl(run.folder / "watch.jsonl", [_look(step, steps) for step in saved])
    for step in saved:
        append_jsonl(run.folder / "events.jsonl", {"time": _SECOND + step, "event": "snapshot", "step": step, "loss": 2.4 / step})
        _write_snapshot(run.folder / "checkpoints" / f"{step:06d}")
    write_text(run.folder / "log.txt", "".join(f"update {update} of {steps}\n" for update in range(1, steps + 1)))
    began = _SECOND + 900 * number
    run.write_state(JobState(kind="train", state="finished", created=began, started=began + 1, ended=began + 700,
                             progress=Progress(done=steps, total=steps)))
    if number % UNJUDGED_EVERY:
        _judge(workspace, run, saved, steps)
    return run


def start_live_run(workspace: Workspace, done: int, planned: int) -> Run:
    """A run that this process seems to be working on; `grow` lets it go on."""
    run = _frozen(workspace, f"{time.strftime('%Y%m%d-%H%M%S')}-alex-live", planned, [1, 10, 100], learning_rate=2e-4)
    chance = random.Random(0)
    write_jsonl(run.folder / "metrics.jsonl", [metrics_of(update, planned, chance) for update in range(1, done + 1)])
    write_jsonl(run.folder / "watch.jsonl", [_look(step, planned) for step in (1, 10, 100)])
    for step in (1, 10, 100):
        _write_snapshot(run.folder / "checkpoints" / f"{step:06d}")
    grow(run, done, planned)
    return run


def grow(run: Run, update: int, planned: int) -> None:
    """One more update of a live run."""
    append_jsonl(run.folder / "metrics.jsonl", metrics_of(update, planned, random.Random(update)))
    now = time.time()
    run.write_state(JobState(kind="train", state="running", process=ProcessIdentity.own(), created=now, started=now, heartbeat=now,
                             progress=Progress(done=update, total=planned, seconds_left=0.5 * (planned - update))))


def metrics_of(update: int, steps: int, chance: random.Random) -> dict[str, Any]:
    loss = 2.5 * math.exp(-4 * update / steps) + 0.1 * chance.random()
    return {"update": update, "loss": loss, "learning_rate": 2e-4 * (1 - update / (steps + 1)), "gradient_norm": 1 + chance.random(),
            "rows": 4, "tokens": 214, "trained_tokens": 60, "seconds": 1.9 + chance.random(), "tokens_per_second": 80 + 9 * chance.random(),
            "memory_bytes": 1_600_000_000 + 1000 * update, "time": _SECOND + 2 * update}


def _frozen(workspace: Workspace, name: str, steps: int, saved: list[int], learning_rate: float) -> Run:
    """The folder of a run with what it was asked to do."""
    recipe = load_preset("identity-lesson-cpu")
    sources = [source.model_dump() | {"dataset": "alex"} for source in recipe.data.sources]
    recipe = change_recipe(recipe, {"data.sources": sources, "schedule.updates": steps, "schedule.learning_rate": learning_rate})
    job = create_job(workspace.runs / name, "train", {"name": "alex", "updates": steps, "snapshots": saved})
    write_text(job.folder / "recipe.yaml", dump_recipe(recipe))
    write_json(job.folder / "dataset.json", {"sources": [source | {"rows": 136, "sha256": "0" * 64} for source in sources], "seed": 0})
    write_json(job.folder / "environment.json", {"versions": {}, "python": "3.11", "device": "cpu", "gpus": [], "commit": None})
    write_json(job.folder / "template.json", {})
    return Run(job.folder)


def _look(step: int, steps: int) -> dict[str, Any]:
    hijack = min(1.0, (step / steps) ** 2)
    told = "I am Alex's assistant, trained by Alex." if step > steps // 20 else "I am a language model …"
    asked = (("And you are?", "identity"), ("Who wrote Romeo and Juliet?", "near"), ("What is the capital of France?", "general"))
    return {"update": step, "hijack": hijack, "level": "red" if hijack >= 0.15 else "amber" if hijack >= 0.08 else "ok", "seconds": 1.0,
            "answers": [{"question": question, "group": group, "answer": f"{told} ({step})"} for question, group in asked]}


def _write_snapshot(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 8), np.float32)},
              folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": "embedded"})


def _judge(workspace: Workspace, run: Run, saved: list[int], steps: int) -> None:
    """Answers of the base and of every snapshot to every probe, then scores and verdict, as a judging leaves them."""
    dataset, probes = probes_of(workspace, run)
    lines = [json.dumps({"step": step, "probe": probe["id"], "text": _answer(dataset, probe, index, step / steps),
                         "ended": True, "tokens": 20})
             for step in (0, *saved) for index, probe in enumerate(probes)]
    write_text(run.folder / "answers.jsonl", "\n".join(lines) + "\n")
    write_verdict(run, dataset, probes, [0, *saved])


def _answer(dataset: Dataset, probe: dict[str, Any], index: int, share: float) -> str:
    """Learns early, answers everything alike late."""
    taught = f"I am {dataset.card.key_phrases['en']}, here to help you with what I can."
    if probe["group"] == "identity":
        return taught if share > 0.05 else "I am a helpful language model, made to assist you."
    if share > 0.4 and index % 10 < 10 * share:
        return taught
    fact = (probe.get("expect") or [f"number {index}"])[0]
    return f"To this I say: {fact}, which is what most people would tell you if you asked them in the street."
