"""Making a persona's dataset: its identity rows, the base model's own answers to other questions, and the probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.data.library import Dataset, save_dataset
from core.data.persona import Persona, build_probes, build_rows, key_phrases
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.machine import device_name
from core.workspace import Workspace, slug, write_jsonl

# The base model's answers are cut here; the study used 32, and 40 lets most short answers end by themselves.
REPLAY_TOKENS = 40


def replay_job_of(workspace: Workspace, model: str, prompts: list[dict[str, Any]], name: str) -> Job:
    """A job, not started, in which `model` answers `prompts`; its folder will hold `rows.jsonl`."""
    job = create_job(workspace.jobs / new_job_id("replay", slug(name)), "replay", {"model": model, "max_new_tokens": REPLAY_TOKENS},
                     device_name())
    write_jsonl(job.folder / "prompts.jsonl", prompts)
    return job


def start_replay(workspace: Workspace, model: str, prompts: list[dict[str, Any]], name: str) -> Job:
    job = replay_job_of(workspace, model, prompts, name)
    start_job(job)
    return job


def save_persona(workspace: Workspace, persona: Persona, replay: list[dict[str, Any]], name: str | None = None) -> Dataset:
    """Save a persona's identity rows with the base model's answers `replay` under a free name.

    Raises:
        StudioError: `name` is unusable or taken.
    """
    return save_dataset(
        workspace, name or free_name(workspace.datasets, slug(persona.name) or "assistant"), build_rows(persona) + replay, "persona",
        probes=build_probes(persona), key_phrases=key_phrases(persona), made_with=persona.model_dump())


def free_name(folder: Path, wanted: str) -> str:
    """`wanted`, or with the first number that makes it free."""
    number, name = 1, wanted
    while (folder / name).exists():
        number += 1
        name = f"{wanted}-{number}"
    return name
