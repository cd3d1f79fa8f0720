"""The lesson: from a name to a chosen, merged, talking model. A job of its own that starts the other jobs and waits for them.

`lesson.json` in its folder says how far it is; a lesson that was killed goes on with the part it was in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.data.persona import Persona, replay_prompts
from core.data.store import free_name, replay_job_of, save_persona
from core.jobs.active import newest_job
from core.jobs.folder import Job, JobState, create_job, new_job_id
from core.jobs.launch import restart_job, start_job, wait_for_job
from core.jobs.once import one_at_a_time
from core.jobs.worker import Recorder
from core.judge.verdict import Verdict
from core.machine import device_name
from core.models.embedded import is_prepared
from core.recipe.files import change_recipe, load_preset
from core.recipe.schema import Recipe
from core.runs import Run, find_run
from core.train.create import create_run
from core.words import Text
from core.workspace import Workspace, read_json, read_jsonl, slug, write_json

PARTS = ("prepare", "data", "train", "judge", "merge", "ask")
REMEDY_PARTS = ("train_remedy", "judge_remedy")
PART_TITLES = {
    "prepare": Text("prepare the embedded model"), "data": Text("make the dataset"), "train": Text("train on the name alone"),
    "judge": Text("ask every snapshot"), "train_remedy": Text("train with the base model's own answers mixed in"),
    "judge_remedy": Text("ask every snapshot of the second run"), "merge": Text("merge the pick and check it"),
    "ask": Text("ask all models the same"),
}
ANSWER_TOKENS = 40
# All shipped wordings: with more ways to ask, fewer other questions are mistaken for one.
LESSON_WORDINGS = 48
# Questions that only look like identity ones leak first, so the replay has many of them.
NEAR_PROMPTS = 30
QUESTIONS = {
    "en": ["And you are?", "Who do you work for?", "What does a personal assistant do?", "Who wrote Romeo and Juliet?",
           "What is the capital of France?", "Name three fruits."],
    "zh": ["您是哪位？", "你是给谁干活的？", "私人助理是做什么的？", "《红楼梦》的作者是谁？", "中国的首都是哪里？", "说出三种水果。"],
}


def start_lesson(workspace: Workspace, persona: Persona, remedy: bool = False, changes: dict[str, str] | None = None) -> Job:
    """Start the lesson as a job; returns at once.

    Args:
        changes: fields of its recipes to change, as `{"schedule.updates": "4"}`.

    Raises:
        StudioError: a change names no field, or its value is not allowed.
    """
    spec = {"persona": persona.model_dump(), "remedy": remedy, "changes": changes or {}}
    for preset in ("identity-lesson-cpu", "identity-lesson-replay"):
        change_recipe(load_preset(preset), spec["changes"], "--set")
    job = create_job(workspace.jobs / new_job_id("lesson", slug(persona.name)), "lesson", spec)
    parts = PARTS[:4] + (REMEDY_PARTS if remedy else ()) + PARTS[4:]
    write_json(job.folder / "lesson.json", {"parts": {part: {"state": "waiting"} for part in parts}})
    start_job(job)
    return job


def start_lesson_once(workspace: Workspace, persona: Persona, remedy: bool = False) -> Job:
    """Start the lesson, or give the one that is under way: two clicks are one lesson."""
    with one_at_a_time(workspace, "lesson"):
        known = newest_lesson(workspace)
        if known is not None and known.state().is_active:
            return known
        return start_lesson(workspace, persona, remedy)


def resume_lesson(workspace: Workspace, job: Job) -> None:
    """Go on with a lesson that was stopped or failed, with the part it was in; nothing happens to one under way."""
    with one_at_a_time(workspace, "lesson"):
        if not job.state().is_active:
            restart_job(job)


def newest_lesson(workspace: Workspace) -> Job | None:
    """The lesson that was started last, whatever has become of it."""
    return newest_job(workspace, "lesson")


def lesson_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Work of a `lesson` job; the result is what `sweetspot lesson --json` prints."""
    return Lesson(workspace, job, recorder).teach()


def read_lesson(job: Job) -> dict[str, Any]:
    """`lesson.json`: per part its state, seconds, and the job behind it."""
    return read_json(job.folder / "lesson.json")


class _Stopped(Exception):
    """Somebody asked the lesson to stop."""


class Lesson:
    """One lesson in progress."""

    def __init__(self, workspace: Workspace, job: Job, recorder: Recorder) -> None:
        self.workspace, self.job, self.recorder = workspace, job, recorder
        self.persona = Persona(**job.spec()["persona"])
        self.remedy = job.spec()["remedy"]
        self.language = self.persona.languages[0]
        self.record = read_lesson(job)

    def teach(self) -> dict[str, Any]:
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "prepare": self._prepare, "data": self._make_data, "train": lambda: self._train("train", "identity-lesson-cpu"),
            "judge": lambda: self._judge("judge", "train"),
            "train_remedy": lambda: self._train("train_remedy", "identity-lesson-replay"),
            "judge_remedy": lambda: self._judge("judge_remedy", "train_remedy"), "merge": self._merge, "ask": self._ask,
        }
        try:
            for part, entry in self.record["parts"].items():
                if entry["state"] != "done":
                    self._do(part, steps[part])
        except _Stopped:
            return {}
        return self._summary()

    def _do(self, part: str, step: Callable[[], dict[str, Any]]) -> None:
        began = time.monotonic()
        self._note(part, state="running")
        outcome = step()
        self._note(part, state="done", seconds=round(time.monotonic() - began, 1), **outcome)

    def _note(self, part: str, **facts: Any) -> None:
        self.record["parts"][part] |= facts
        write_json(self.job.folder / "lesson.json", self.record)

    def _part(self, part: str) -> dict[str, Any]:
        return self.record["parts"][part]

    def _wait(self, part: str, make: Callable[[], Job]) -> JobState:
        """Start the job of a part, or find the one an earlier life of this lesson started, and wait for its end."""
        known = self._part(part).get("folder")
        child = Job(Path(known)) if known else make()
        if not known:
            self._note(part, folder=str(child.folder))
            start_job(child)
        elif child.state().state in ("failed", "stopped"):
            restart_job(child)

        def forward(state: JobState) -> None:
            if self.recorder.stop_requested():
                child.request_stop()
            progress = state.progress
            if progress.label:
                self.recorder.progress(progress.done, progress.total, Text.from_json(progress.label))

        state = wait_for_job(child, forward)
        if state.state == "stopped":
            raise _Stopped
        return state

    def _prepare(self) -> dict[str, Any]:
        if not is_prepared(self.workspace):
            self._wait("prepare", lambda: create_job(self.workspace.jobs / new_job_id("prepare", "embedded"), "prepare", {}))
        return {}

    def _make_data(self) -> dict[str, Any]:
        prompts = replay_prompts(self.persona.languages, near=NEAR_PROMPTS)
        state = self._wait("data", lambda: replay_job_of(self.workspace, "embedded", prompts, self.persona.name))
        replay = read_jsonl(Path(self._part("data")["folder"]) / "rows.jsonl")
        dataset = save_persona(self.workspace, self.persona, replay)
        return {"dataset": dataset.card.name, "rows": dataset.card.groups, "probes": dataset.card.probes,
                "left_out": (state.result or {}).get("left_out", 0)}

    def _recipe(self, preset: str) -> Recipe:
        name = self._part("data")["dataset"]
        recipe = load_preset(preset)
        sources = [source.model_dump() | {"dataset": name} for source in recipe.data.sources]
        return change_recipe(recipe, {"data.sources": sources, **self.job.spec()["changes"]})

    def _train(self, part: str, preset: str) -> dict[str, Any]:
        title = self._part("data")["dataset"] + ("-replay" if part == "train_remedy" else "")
        self._wait(part, lambda: create_run(self.workspace, self._recipe(preset), title))
        return {"run": Path(self._part(part)["folder"]).name}

    def _judge(self, part: str, train_part: str) -> dict[str, Any]:
        run = self._part(train_part)["run"]
        self._wait(part, lambda: judge_job_of(self.workspace, find_run(self.workspace, run), quick=True))
        verdict = find_run(self.workspace, run).verdict() or {}
        return {"verdict": verdict["verdict"], "step": verdict["pick"]["step"]}

    def _chosen_run(self) -> Run:
        """The run whose pick is merged: the remedy's when there is one."""
        part = "train_remedy" if self.remedy else "train"
        return find_run(self.workspace, self._part(part)["run"])

    def _merge(self) -> dict[str, Any]:
        run = self._chosen_run()
        name = free_name(self.workspace.models, slug(self.persona.name) or "assistant")
        self._wait("merge", lambda: merge_job_of(self.workspace, f"{run.id}@pick", name))
        spec = Job(Path(self._part("merge")["folder"])).spec()
        return {"model": spec["name"]}

    def _ask(self) -> dict[str, Any]:
        run = self._chosen_run()
        models = ["embedded", f"{run.id}@pick", f"{run.id}@last", self._part("merge")["model"]]
        questions = QUESTIONS.get(self.language, QUESTIONS["en"])
        state = self._wait("ask", lambda: create_job(
            self.workspace.jobs / new_job_id("ask", slug(self.persona.name)), "ask",
            {"models": models, "questions": questions, "max_new_tokens": ANSWER_TOKENS}, device_name()))
        return {"answers": state.result}

    def _summary(self) -> dict[str, Any]:
        runs = {"train": self._part("train")["run"]}
        if self.remedy:
            runs["train_remedy"] = self._part("train_remedy")["run"]
        verdicts = {part: Verdict.model_validate(find_run(self.workspace, run).verdict()) for part, run in runs.items()}
        chosen = verdicts["train_remedy" if self.remedy else "train"]
        verification = read_json(self.workspace.models / self._part("merge")["model"] / "merge.json")["verification"]
        summary = {
            "verdict": chosen.verdict, "reason": str(Text.from_json(chosen.reason)), "run": self._chosen_run().id,
            "dataset": self._part("data")["dataset"], "model": self._part("merge")["model"],
            "pick": chosen.pick.model_dump(), "last": chosen.last.model_dump(),
            "merged": {key: verification[key] for key in ("same_answers", "answers_compared", "max_logit_difference",
                                                          "logit_tolerance", "tensors_changed", "differs_from_base")},
            "questions": self._part("ask")["answers"],
            "seconds": {part: entry.get("seconds") for part, entry in self.record["parts"].items()},
        }
        if self.remedy:
            first = verdicts["train"]
            summary["without_remedy"] = {"run": runs["train"], "verdict": first.verdict, "pick": first.pick.model_dump(),
                                         "last": first.last.model_dump()}
        return summary


def judge_job_of(workspace: Workspace, run: Run, quick: bool = False, endpoint: bool = False) -> Job:
    """A job, not started, that judges `run`; `quick` asks fewer probes, `endpoint` lets checks ask a stronger model."""
    spec = {"run": run.id, **({"quick": True} if quick else {}), **({"endpoint": True} if endpoint else {})}
    return create_job(workspace.jobs / new_job_id("judge", run.id), "judge", spec, run.state().device)


def merge_job_of(workspace: Workspace, model: str, name: str, dtype: str = "auto") -> Job:
    """A job, not started, that merges the checkpoint `model` into `models/<name>`."""
    return create_job(workspace.jobs / new_job_id("merge", name), "merge", {"model": model, "name": name, "dtype": dtype}, device_name())
