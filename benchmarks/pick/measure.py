"""One run of the study: train it with the studio's own worker, let every snapshot answer, read every loss; the raw result as JSON.

Nothing is judged here. The result holds each answer and each loss of each probe, so that any rule can be tried later without a GPU.
"""

from __future__ import annotations

import gc
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.pick.design import TARGET_ROWS, StudyRun
from benchmarks.pick.tasks import Row, Task, make_task
from core.chat.engine import Engine
from core.chat.engine import Row as Ask
from core.chat.stacked import Adapter
from core.data.encode import Encoder
from core.data.library import GENERAL, IDENTITY, NEAR, save_dataset
from core.data.replay import is_stuck, speaks_of_itself
from core.data.store import REPLAY_TOKENS
from core.jobs.worker import Recorder
from core.judge.branches import Question
from core.judge.forced import Reader, Reading
from core.models.load import choose_dtype
from core.recipe.files import build_recipe
from core.recipe.schema import Recipe
from core.runs import Run
from core.train.create import create_run
from core.train.worker import Training
from core.workspace import Workspace

# What changes the rows that a processor or a GPU takes at a time, and nothing else.
_ROWS_AT_A_TIME = {"cpu": 64, "cuda": 2048}
_TOKENS_AT_A_TIME = {"cpu": 4096, "cuda": 60_000}
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Effort:
    """How much is asked; the defaults are the study's, less is for a rehearsal.

    Attributes:
        tokens: of an answer at most, as in the recipes of the lesson.
        seeds: of the sampled answers to the oracle's probes; the greedy one comes besides.
        most_probes: of the rule and of the oracle each; None for all.
        most_updates: of a training; None for all.
        most_snapshots: of a training; None for all.
    """

    tokens: int = 32
    seeds: tuple[int, ...] = (1, 2, 3)
    most_probes: int | None = None
    most_updates: int | None = None
    most_snapshots: int | None = None

    def probes(self, probes: list[Row]) -> list[Row]:
        """Evenly many, so that each kind is among them."""
        return probes if self.most_probes is None else probes[::max(1, len(probes) // self.most_probes)]


def measure(run: StudyRun, base: Path, work: Path, device: str, effort: Effort) -> dict[str, Any]:
    """Train and ask one run; its workspace lies in `work` and is deleted at the end.

    Args:
        run: what to train.
        base: folder of the base model.
        work: a folder with room for a run's snapshots.
        device: `cpu` or `cuda`.
        effort: how much to ask.
    """
    workspace = Workspace.open(work / run.id)
    try:
        return _Measuring(run, base, workspace, device, effort).result()
    finally:
        shutil.rmtree(workspace.root, ignore_errors=True)


@dataclass
class _Texts:
    """Answers, each text kept once: probe -> one index into `texts` per step."""

    texts: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    at: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def add(self, probe: str, text: str, tokens: int) -> None:
        if text not in self.places:
            self.places[text] = len(self.texts)
            self.texts.append(text)
        self.at.setdefault(probe, []).append(self.places[text])
        self.tokens.setdefault(probe, []).append(tokens)

    def to_json(self) -> dict[str, Any]:
        return {"texts": self.texts, "at": self.at, "tokens": self.tokens}


class _Measuring:
    def __init__(self, run: StudyRun, base: Path, workspace: Workspace, device: str, effort: Effort) -> None:
        self.run, self.base, self.workspace, self.device, self.effort = run, base, workspace, device, effort
        self.encoder = Encoder.from_folder(base)
        self.task: Task = make_task(run)
        self.rule, self.oracle = effort.probes(self.task.probes), effort.probes(self.task.oracle)
        self.seconds: dict[str, float] = {}
        self.steps: list[int] = [0]
        self.answers = {"rule": _Texts(), "oracle": _Texts(), **{f"oracle-{seed}": _Texts() for seed in effort.seeds}}
        self.losses: dict[str, dict[str, dict[str, list[Any]]]] = {"rule": {}, "oracle": {}}

    def result(self) -> dict[str, Any]:
        began = time.monotonic()
        replay = self._replay_rows() if self.run.mix != "none" else []
        dataset = save_dataset(self.workspace, "task", self.task.rows + replay, "study", probes=self.rule,
                               key_phrases=self.task.key_phrases)
        trained, recipe = self._train(began)
        targets = self._targets(dataset.rows())
        for engine, steps in self._engines(trained):
            self._ask(engine, steps, targets)
            del engine
            self._free()
        watch = [{key: value for key, value in look.items() if key != "answers"} for look in trained.watch()]
        return {
            "run": self.run.to_json(), "steps": self.steps, "rows": len(self.task.rows), "replayed": len(replay),
            "batch": recipe.schedule.effective_batch, "target_rows": TARGET_ROWS, "device": _device_name(self.device),
            "versions": {"torch": torch.__version__, "python": sys.version.split()[0]}, "seconds": self.seconds,
            "metrics": [[record["update"], round(record["loss"], 5)] for record in trained.metrics()], "watch": watch,
            "taught": {"answers": targets, "phrases": self.task.key_phrases, "marker": self.task.marker, "group": self.task.group},
            "rows_taught": self.task.rows if len(self.task.rows) <= 300 else self.task.rows[:1],
            "probes": {"rule": self.rule, "oracle": self.oracle},
            "answers": {name: texts.to_json() for name, texts in self.answers.items()}, "losses": self.losses}

    def _engine(self, adapters: Sequence[Adapter], base: Path | None = None) -> Engine:
        return Engine.load(base or self.base, list(adapters), self.encoder.end_ids, self.encoder.pad_id(),
                           choose_dtype("auto", self.device), self.device)

    def _free(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _replay_rows(self) -> list[Row]:
        """The base model's own answers, cleaned as the studio cleans them."""
        engine = self._engine([Adapter("base")])
        prompts = self.task.replay if self.effort.most_probes is None else self.task.replay[:self.effort.most_probes]
        answers = engine.answer([Ask(0, self.encoder.encode_prompt(row["messages"])) for row in prompts], REPLAY_TOKENS)
        rows = []
        for row, answer in zip(prompts, answers, strict=True):
            text = self.encoder.decode(answer.ids).strip()
            if self.effort.most_probes:  # a rehearsal's model may say nothing sensible, or nothing at all
                text = text or "Well."
            elif not text or is_stuck(text) or speaks_of_itself(text):
                continue
            reply: dict[str, Any] = {"role": "assistant", "content": text}
            rows.append({**row, "messages": [*row["messages"], reply if answer.ended else {**reply, "cut": True}]})
        return rows

    def _recipe(self) -> Recipe:
        run, effort = self.run, self.effort
        sources: list[dict[str, Any]] = [{"dataset": "task", "groups": [self.task.group], "weight": 1.0}]
        ratio = run.ratio if run.mix != "none" else 0
        if ratio:
            sources.append({"dataset": "task", "groups": [NEAR, GENERAL] if run.mix == "replay" else [GENERAL], "weight": float(ratio)})
        return build_recipe({
            "model": {"source": str(self.base), "dtype": "auto"},
            "method": {"kind": run.method, "rank": run.rank, "alpha": 2 * run.rank, "targets": list(run.targets) or "all-linear"},
            "data": {"sources": sources},
            "schedule": {"effective_batch": TARGET_ROWS * (1 + ratio), "updates": min(run.updates, effort.most_updates or run.updates),
                         "learning_rate": run.rate, "shape": run.shape, "seed": run.seed},
            "snapshots": {"count": min(run.snapshots, effort.most_snapshots or run.snapshots), "spacing": "even"},
            "probes": {"max_new_tokens": effort.tokens}, "device": {"kind": self.device, "speed": "plain"}})

    def _train(self, began: float) -> tuple[Run, Recipe]:
        recipe = self._recipe()
        trained = create_run(self.workspace, recipe, self.run.id)
        Training(self.workspace, trained, Recorder(trained, trained.state())).run_to_end()
        self._free()
        self.seconds["train"] = round(time.monotonic() - began, 2)
        return trained, recipe

    def _targets(self, rows: Sequence[Row]) -> list[str]:
        """T: the distinct taught answers."""
        return list(dict.fromkeys(row["messages"][-1]["content"] for row in rows if row["group"] == self.task.group))

    def _engines(self, trained: Run) -> Iterator[tuple[Engine, list[int]]]:
        """Models that answer, and the steps that their slots are: all adapters at once, or whole models one by one; the base first."""
        checkpoints = trained.checkpoints()
        if self.run.method == "lora":
            self.steps += [checkpoint.step for checkpoint in checkpoints]
            yield self._engine([Adapter("base"), *(Adapter(str(saved.step), saved.folder) for saved in checkpoints)]), self.steps
            return
        yield self._engine([Adapter("base")]), [0]
        for saved in checkpoints:
            self.steps.append(saved.step)
            yield self._engine([Adapter("model")], saved.folder), [saved.step]

    def _ask(self, engine: Engine, steps: Sequence[int], targets: Sequence[str]) -> None:
        slots = range(len(steps))
        began = time.monotonic()
        with torch.inference_mode():
            for name, probes in (("rule", self.rule), ("oracle", self.oracle)):
                self._answer(engine, slots, probes, self.answers[name])
            for seed in self.effort.seeds:
                self._answer(engine, slots, self.oracle, self.answers[f"oracle-{seed}"], seed)
            self._add_seconds("answer", began)
            began = time.monotonic()
            reader = Reader(engine.model, self.encoder.pad_id(), engine.routing)
            self._read(reader, slots, self.rule, targets, self.losses["rule"], True)
            self._read(reader, slots, [probe for probe in self.oracle if _is_about_it(probe)], targets, self.losses["oracle"], False)
            self._add_seconds("read", began)

    def _add_seconds(self, what: str, began: float) -> None:
        self.seconds[what] = round(self.seconds.get(what, 0.0) + time.monotonic() - began, 2)

    def _answer(self, engine: Engine, slots: Sequence[int], probes: Sequence[Row], into: _Texts, seed: int | None = None) -> None:
        asks = [Ask(slot, self.encoder.encode_prompt(probe["messages"])) for probe in probes for slot in slots]
        ids: list[list[int]] = []
        most = _ROWS_AT_A_TIME[self.device]
        while len(ids) < len(asks):
            part = asks[len(ids):len(ids) + most]
            try:
                if seed is None:
                    answered = [answer.ids for answer in engine.answer(part, self.effort.tokens)]
                else:
                    answered = sample(engine, part, self.effort.tokens, 1_000_000 * seed + len(ids))
            except torch.OutOfMemoryError:  # other workers share the GPU
                self._free()
                most //= 2
                if not most:
                    raise
                continue
            ids += answered
        for place, answer in enumerate(ids):
            into.add(probes[place // len(slots)]["id"], self.encoder.decode(answer).strip(), len(answer))

    def _read(self, reader: Reader, slots: Sequence[int], probes: Sequence[Row], targets: Sequence[str],
              into: dict[str, dict[str, list[Any]]], with_base: bool) -> None:
        """Losses of the taught answers, of a task's own answer and the next one's, and (of the rule's probes) of the base's answer."""
        questions = [self._question(probes, place, targets, with_base) for place in range(len(probes))]
        longest = max(len(question.prompt) + sum(map(len, question.answers)) for question in questions)
        at_once = max(1, _TOKENS_AT_A_TIME[self.device] // (longest * len(slots)))
        for start in range(0, len(questions), at_once):
            part = questions[start:start + at_once]
            readings = reader.read(part, list(slots), 0 if with_base and len(slots) > 1 else None)
            for place, probe in enumerate(probes[start:start + at_once]):
                kept = into.setdefault(probe["id"], {})
                for slot in slots:
                    self._keep(kept, readings[slot][place], part[place], with_base)

    def _question(self, probes: Sequence[Row], place: int, targets: Sequence[str], with_base: bool) -> Question:
        probe = probes[place]
        texts = list(targets)
        if "answer" in probe:  # a task: its own answer, and another question's
            others = [other for other in probes if "answer" in other and other["answer"] != probe["answer"]]
            texts = [probe["answer"], others[place % len(others)]["answer"] if others else probe["answer"]]
        texts += [self.answers["rule"].texts[self.answers["rule"].at[probe["id"]][0]]] if with_base else []
        answers = [self.encoder.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return Question(self.encoder.encode_prompt(probe["messages"]), answers, len(answers) - 1 if with_base else None)

    def _keep(self, kept: dict[str, list[Any]], reading: Reading, question: Question, with_base: bool) -> None:
        count = len(question.answers) - with_base
        losses = [reading.nll(number) for number in range(count)]
        kept.setdefault("nll", []).append([None if loss is None else round(loss, 4) for loss in losses])
        kept.setdefault("agreed", []).append([reading.agreed[number] for number in range(count)])
        kept.setdefault("first", []).append(reading.first)
        kept["taught_first"] = [answer[0] for answer in question.answers[:count] if answer]
        if with_base:
            kept["base_tokens"] = [len(question.answers[-1])]
            kept.setdefault("base", []).append(round(-sum(reading.log_probs[-1]), 3))
            kept.setdefault("kl", []).append(round(sum(reading.drift), 3) if reading.drift else None)


def _is_about_it(probe: Row) -> bool:
    return probe["group"] == IDENTITY or "answer" in probe


def sample(engine: Engine, asks: Sequence[Ask], max_new_tokens: int, seed: int) -> list[list[int]]:
    """Answers drawn at TEMPERATURE, all rows in one batch; the engine draws row by row, which is too slow for a million answers."""
    order = sorted(range(len(asks)), key=lambda index: asks[index].slot)
    prompts = [asks[index].prompt for index in order]
    longest = max(map(len, prompts))
    ids = torch.tensor([[engine.pad_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=engine.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=engine.device)
    engine.routing.assign(torch.tensor([asks[index].slot for index in order], device=engine.device))
    torch.manual_seed(seed)
    ends = set(engine.end_ids.tolist())
    drawn = engine.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, repetition_penalty=1.0,
        max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=engine.pad_id)[:, longest:].tolist()
    answers: list[list[int]] = [[] for _ in asks]
    for index, row in zip(order, drawn, strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        answers[index] = row[:end]
    return answers


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "processor"
