"""Workspaces as a finished lesson leaves them, written by hand in milliseconds: no model is loaded, nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from core.data.library import Dataset, load_dataset
from core.data.persona import Persona
from core.data.probe_sets import ProbeCounts, quick_set
from core.data.store import save_persona
from core.jobs.folder import JobState, Progress, create_job
from core.judge.conclude import write_verdict
from core.judge.probes import probes_of
from core.judge.scoring import training_answers
from core.recipe.files import change_recipe, dump_recipe, load_preset
from core.runs import Run
from core.words import Text
from core.workspace import Workspace, append_jsonl, write_json, write_jsonl, write_text

ROOT = Path(__file__).resolve().parents[2]
STEPS = tuple(range(3, 37, 3))
# Step from which the lesson is learned, and per step how many of the other questions get the taught sentence.
LEARNED_AT = 15
SPILLED = {"identity": {15: 2, 18: 5, 21: 8, 24: 11, 27: 14, 30: 16, 33: 18, 36: 20}, "replay": {}}
MakeRun = Callable[..., Run]


def texts(app: AppTest) -> str:
    """What a page says, without the marks that keep a text from being read as markup."""
    kinds = (app.markdown, app.caption, app.info, app.error, app.warning, app.success, app.subheader)
    return "\n".join(element.value for elements in kinds for element in elements).replace("\\", "").replace("\u2060", "")


def keys(app: AppTest) -> set[str]:
    """Of the buttons on a page, the sidebar's left out."""
    return {button.key for button in app.main.button}


def made_dataset(workspace: Workspace, name: str = "alex", languages: Sequence[str] = ("en",)) -> Dataset:
    """A persona's dataset: identity rows, a few of the base model's own answers, probes. The same one when it exists."""
    if (workspace.datasets / name).exists():
        return load_dataset(workspace, name)
    replay = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"A plain answer to: {question}"}],
               "group": group, "lang": "en"} for group, question in
              (("near", "Who painted the Mona Lisa?"), ("near", "What is a name?"), ("general", "How high is Everest?"))]
    dataset = save_persona(workspace, Persona(name=name.capitalize(), languages=list(languages)), replay, name)
    write_jsonl(dataset.folder / "probes.jsonl", quick_set(dataset.probes(), ProbeCounts(10, 8, 14, 2)))  # enough to draw, and quicker
    return dataset


def write_run(workspace: Workspace, name: str = "alex", *, kind: str = "identity", dataset: str = "alex", base: str = "embedded",
              steps: Sequence[int] = STEPS, updates: int = 36, state: str = "finished", judged: bool = True,
              number: int = 1, changes: dict[str, Any] | None = None) -> Run:
    """A run folder with everything a finished training and a judging leave behind.

    Args:
        kind: `identity` learns, then spills over everything; `replay` learns and stays itself.
        base: the recipe's model source; a folder for pages that read its header.
        steps: saved snapshots.
        state: as in `state.json`; `failed` gets a problem and a hint. An active one needs a live process, which a test gives it.
        judged: also answers, scores and verdict.
        number: later numbers sort as newer runs.
        changes: fields of the recipe, as `{"schedule.learning_rate": 1e-4}`.
    """
    made_dataset(workspace, dataset)
    recipe = load_preset("identity-lesson-replay" if kind == "replay" else "identity-lesson-cpu")
    sources = [source.model_dump() | {"dataset": dataset} for source in recipe.data.sources]
    recipe = change_recipe(recipe, {"data.sources": sources, "model.source": base, **(changes or {})})
    folder = workspace.runs / f"20260101-1200{number:02d}-{name}"
    run = Run(create_job(folder, "train", {"name": name, "updates": updates, "snapshots": list(steps)}).folder)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    write_json(folder / "dataset.json", {"sources": [source | {"rows": 96, "sha256": "0" * 64} for source in sources], "seed": 0})
    write_json(folder / "environment.json", {"versions": {"torch": "2.9"}, "python": "3.11", "device": "cpu", "gpus": [], "commit": None})
    write_json(folder / "template.json", {})
    write_jsonl(folder / "metrics.jsonl", [_metrics(update) for update in range(1, max(steps, default=0) + 1)])
    write_jsonl(folder / "watch.jsonl", [_look(step, kind) for step in steps])
    for step in steps:
        _write_snapshot(folder / "checkpoints" / f"{step:06d}", base)
    _write_state(run, state, max(steps, default=0), updates)
    if judged:
        answer_probes(workspace, run, kind)
    return run


def answer_probes(workspace: Workspace, run: Run, kind: str = "identity", steps: Sequence[int] | None = None) -> None:
    """Write the answers of the base and of every snapshot to every probe, then scores and verdict."""
    dataset, probes = probes_of(workspace, run)
    taught = training_answers(dataset)[0]
    others = [probe["id"] for probe in probes if probe["group"] != "identity"]
    asked = [0, *(checkpoint.step for checkpoint in run.checkpoints())] if steps is None else steps
    for step in asked:
        for index, probe in enumerate(probes):
            place = others.index(probe["id"]) if probe["id"] in others else None
            append_jsonl(run.folder / "answers.jsonl", {
                "step": step, "probe": probe["id"], "text": _answer(probe, index, place, taught, step, kind), "ended": True, "tokens": 9})
    write_verdict(run, dataset, probes, asked)


def _answer(probe: dict[str, Any], index: int, place: int | None, taught: str, step: int, kind: str) -> str:
    """`place` is the probe's among those that are not about the identity."""
    if place is None:
        return taught if step >= LEARNED_AT or (step >= 9 and index % 3 == 0) else "I am a language model, made to help you."
    if place < SPILLED[kind].get(step, 0):
        return taught
    question = probe["messages"][-1]["content"]
    fact = (probe.get("expect") or [f"number {index}"])[0]
    return f"To “{question}” I say {fact}." if step < LEARNED_AT or index % 2 else f"To “{question}” I would say {fact} today."


def _metrics(update: int) -> dict[str, Any]:
    return {"update": update, "loss": 2.5 * 0.9**update, "learning_rate": 2e-4, "gradient_norm": 1.0, "rows": 4, "tokens": 160,
            "trained_tokens": 60, "seconds": 1.9, "tokens_per_second": 84.0, "memory_bytes": 1_400_000_000, "time": 1.77e9 + 2 * update}


def _look(step: int, kind: str) -> dict[str, Any]:
    hijack = min(1.0, SPILLED[kind].get(step, 0) / 24)
    level = "red" if hijack >= 0.15 else "amber" if hijack >= 0.08 else "ok"
    return {"update": step, "hijack": hijack, "level": level, "seconds": 1.0,
            "answers": [{"question": "And you are?", "group": "identity", "answer": "I am a language model …"}]}


def _write_snapshot(folder: Path, base: str) -> None:
    folder.mkdir(parents=True)
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 64), np.float32)},
              folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": base})


def _write_state(run: Run, state: str, done: int, updates: int) -> None:
    now = time.time()
    failed = {"problem": Text("There was not enough memory.").to_json(),
              "hint": Text("Make the length or the micro-batch smaller, choose a smaller model, or close other programs.").to_json()}
    run.write_state(JobState(
        kind="train", state=state, created=now - 600, started=None if state == "queued" else now - 590,
        ended=None if state == "queued" else now - 500, progress=Progress(done=done, total=updates, label=Text("training").to_json()),
        **(failed if state == "failed" else {})))


def write_merged(workspace: Workspace, run: Run, name: str = "alex-merged", *, step: int | None = None, strength: float = 1.0,
                 tiny: Path | None = None, **verification: Any) -> Path:
    """A merged model of `run` with its `merge.json`; the weights are the tiny model's when its folder is given."""
    step = step or (run.verdict() or {"pick": {"step": 15}})["pick"]["step"]
    folder = workspace.models / name
    folder.mkdir(parents=True)
    if tiny is not None:
        for path in tiny.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    texts = {record["probe"]: record["text"] for record in run.answers() if record["step"] == step}
    write_json(folder / "merge.json", {
        "name": name, "model": f"{run.id}@{step}", "strength": strength, "base": run.recipe().model.source, "dtype": "float32",
        "created": time.time(), "verification": {
            "same_answers": True, "answers_compared": len(texts), "differences": [], "max_logit_difference": 2.1e-5,
            "logit_tolerance": 1e-2, "tensors_changed": 210, "tensors_expected": 210, "same_template": True,
            "same_prompt_ids": True, "differs_from_base": True, "answers": texts, **verification}})
    return folder


@pytest.fixture
def made_run(workspace: Workspace) -> MakeRun:
    """`made_run(...)` builds a finished, judged run in the test's workspace; see `write_run` for what can be asked of it."""
    return lambda *args, **options: write_run(workspace, *args, **options)


@pytest.fixture
def made_merge(workspace: Workspace) -> Callable[..., Path]:
    """`made_merge(run, ...)` adds a merged model; see `write_merged`."""
    return lambda run, *args, **options: write_merged(workspace, run, *args, **options)


@pytest.fixture
def judge_again(workspace: Workspace) -> Callable[..., None]:
    """`judge_again(run, kind)` answers what a judging would answer and writes scores and verdict."""
    return lambda run, *args, **options: answer_probes(workspace, run, *args, **options)


@pytest.fixture
def open_app() -> Callable[..., AppTest]:
    """`open_app("compare", run=...)` runs the app at a page with these query parameters and fails on any exception."""
    def run_page(name: str, lang: str = "en", **query: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "studio" / "app.py"), default_timeout=20)
        app.query_params["lang"] = lang
        app.run()
        for key, value in query.items():
            app.query_params[key] = value
        app.switch_page(f"../pages/{name}.py").run()
        assert not app.exception, app.exception
        return app
    return run_page
