"""Making a persona's dataset: its identity rows, the base model's own answers to other questions, and the probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.data.library import Dataset, append_rows, load_dataset, save_dataset
from core.data.persona import Persona, build_probes, build_rows, course_rows, held_out_probes, key_phrases, replay_prompts
from core.data.wordings import normalised, shipped_languages
from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.machine import device_name
from core.workspace import Workspace, check_name, slug

# The base model's answers are cut here; the study used 32, and 40 lets most short answers end by themselves.
REPLAY_TOKENS = 40


def replay_job_of(workspace: Workspace, model: str, prompts: list[dict[str, Any]], name: str, **then: Any) -> Job:
    """A job, not started, in which `model` answers `prompts`; its folder will hold `rows.jsonl`.

    `then` says what becomes of the answers; see `finish_replay`.
    """
    job = create_job(workspace.jobs / new_job_id("replay", slug(name)), "replay",
                     {"model": model, "max_new_tokens": REPLAY_TOKENS, **then}, device_name(),
                     {"prompts.jsonl": "".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts)})
    return job


def start_replay(workspace: Workspace, model: str, prompts: list[dict[str, Any]], name: str) -> Job:
    job = replay_job_of(workspace, model, prompts, name)
    start_job(job)
    return job


def start_persona(workspace: Workspace, persona: Persona, name: str, model: str = "embedded") -> Job:
    """Start a job that lets `model` answer near and general questions and then saves all as the dataset `name`.

    Raises:
        StudioError: the name is unusable or taken.
    """
    if (workspace.datasets / check_name(name, "dataset")).exists():
        raise StudioError("A dataset called {name} exists already.", "Choose another name, or delete the old one first.", name=name)
    job = replay_job_of(workspace, model, replay_prompts(persona.languages), name, persona=persona.model_dump(), dataset=name)
    start_job(job)
    return job


def start_replay_dataset(workspace: Workspace, name: str, languages: list[str], model: str = "embedded", near: int = 62,
                         general: int = 300) -> Job:
    """Start a job that saves `model`'s own answers to near and general questions as a dataset, with held-out questions as its probes.

    Raises:
        StudioError: the name is unusable or taken, a language is unknown, or more questions are asked for than exist.
    """
    if (workspace.datasets / check_name(name, "dataset")).exists():
        raise StudioError("A dataset called {name} exists already.", "Choose another name, or delete the old one first.", name=name)
    prompts = replay_prompts(languages, near, general)
    job = replay_job_of(workspace, model, prompts, name, dataset=name, languages=languages)
    start_job(job)
    return job


def start_reminders(workspace: Workspace, name: str, model: str = "embedded") -> Job:
    """Start a job that adds the model's own answers to near and general questions to the dataset `name`.

    Questions that the dataset has already, as rows or as probes, are left out.

    Raises:
        StudioError: there is no such dataset, or no question is left to ask.
    """
    dataset = load_dataset(workspace, name)
    asked = {normalised(message["content"]) for row in [*dataset.rows(), *dataset.probes()] for message in row.get("messages", ())
             if message["role"] == "user"}
    languages = [code for code in dataset.card.languages if code in shipped_languages()] or ["en"]
    prompts = [row for row in replay_prompts(languages) if normalised(row["messages"][-1]["content"]) not in asked]
    if not prompts:
        raise StudioError("The dataset {name} holds all of these questions already.", "Add your own rows to it, or mix in another dataset.",
                          name=name)
    job = replay_job_of(workspace, model, prompts, name, append_to=name)
    start_job(job)
    return job


def finish_replay(workspace: Workspace, spec: dict[str, Any], answered: list[dict[str, Any]]) -> dict[str, Any]:
    """What a replay job does with the answered rows at its end; returns what its result shall name.

    `persona` with `dataset` saves a persona's dataset, `languages` with `dataset` one of the answers alone, `append_to` adds the rows to
    a dataset; without any of these the rows stay in the job.
    """
    if "persona" in spec:
        name = free_name(workspace.datasets, spec["dataset"])
        return {"dataset": save_persona(workspace, Persona(**spec["persona"]), answered, name).card.name}
    if "languages" in spec:
        name = free_name(workspace.datasets, spec["dataset"])
        probes = [probe for code in spec["languages"] for probe in held_out_probes(code)]
        return {"dataset": save_dataset(workspace, name, answered, "replay", probes=probes,
                                        made_with={"model": spec["model"], "languages": spec["languages"]}).card.name}
    if "append_to" in spec:
        return {"dataset": append_rows(workspace, spec["append_to"], answered, "replay").card.name}
    return {}


def data_jobs(workspace: Workspace) -> list[Job]:
    """The jobs that make or extend a dataset, newest first."""
    folders = [folder for kind in ("replay", "import") for folder in workspace.jobs.glob(f"*-{kind}-*") if (folder / "spec.json").exists()]
    found = [(Job(folder), Job(folder).spec()) for folder in sorted(folders, reverse=True)]
    return [job for job, spec in found if spec["kind"] in ("replay", "import") and {"dataset", "append_to"} & spec.keys()]


def save_persona(workspace: Workspace, persona: Persona, replay: list[dict[str, Any]], name: str | None = None) -> Dataset:
    """Save a persona's identity rows with the base model's answers `replay` under a free name.

    Raises:
        StudioError: `name` is unusable or taken.
    """
    return save_dataset(
        workspace, name or free_name(workspace.datasets, slug(persona.name) or "assistant"), build_rows(persona) + replay, "persona",
        probes=build_probes(persona), key_phrases=key_phrases(persona), made_with=persona.model_dump())


def save_one_pair(workspace: Workspace, persona: Persona, copies: int, name: str | None = None) -> Dataset:
    """Save one question with one answer, `copies` times: the first lesson of many courses, to show what overfitting is.

    Raises:
        StudioError: `name` is unusable or taken, or there is no copy.
    """
    return save_dataset(
        workspace, name or free_name(workspace.datasets, f"{slug(persona.name) or 'assistant'}-one-pair"), course_rows(persona, copies),
        "persona", probes=build_probes(persona), key_phrases=key_phrases(persona),
        made_with={**persona.model_dump(), "preset": "one-pair-repeated", "copies": copies})


def free_name(folder: Path, wanted: str) -> str:
    """`wanted`, or with the first number that makes it free."""
    number, name = 1, wanted
    while (folder / name).exists():
        number += 1
        name = f"{wanted}-{number}"
    return name
