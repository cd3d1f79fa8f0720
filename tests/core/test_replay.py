"""Jobs in which a model answers for a dataset: what they save, what they add, and that stopping saves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.library import load_dataset, save_dataset
from core.data.persona import Persona
from core.data.replay import replay_job
from core.data.store import data_jobs, finish_replay, replay_job_of, start_persona, start_reminders
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.workspace import Workspace, read_jsonl


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    jobs: list[Job] = []
    monkeypatch.setattr("core.data.store.start_job", jobs.append)
    return jobs


def row(question: str, group: str = "identity", lang: str = "en") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "I am Alex's personal assistant."}],
            "group": group, "lang": lang}


def work(workspace: Workspace, job: Job) -> dict:
    return replay_job(workspace, job, Recorder(job, job.state()))


def test_a_persona_job_saves_its_dataset(workspace: Workspace, tiny_model: Path, started: list[Job]) -> None:
    job = start_persona(workspace, Persona(name="Alex"), "alex", str(tiny_model))
    assert [found.id for found in started] == [job.id] == [found.id for found in data_jobs(workspace)]
    result = work(workspace, job)
    dataset = load_dataset(workspace, "alex")
    assert result["dataset"] == "alex" and result["answered"] + result["left_out"] == 60
    assert dataset.card.groups["identity"] == 96 and dataset.card.rows == 96 + result["answered"] and dataset.card.probes == 34
    progress = job.state().progress
    assert (progress.done, progress.total) == (60, 60)
    with pytest.raises(StudioError, match="exists already"):
        start_persona(workspace, Persona(name="Alex"), "alex")
    assert finish_replay(workspace, job.spec(), [])["dataset"] == "alex-2", "a name taken meanwhile costs no work"


def test_reminders_are_added_to_a_dataset(workspace: Workspace, started: list[Job]) -> None:
    save_dataset(workspace, "mine", [row("你是谁？", lang="zh"), row("Who wrote Romeo and Juliet?")], "test")
    job = start_reminders(workspace, "mine")
    asked = [prompt["messages"][0]["content"] for prompt in read_jsonl(job.folder / "prompts.jsonl")]
    assert len(asked) >= 100 and "Who wrote Romeo and Juliet?" not in asked
    assert finish_replay(workspace, job.spec(), [row("near?", "near")]) == {"dataset": "mine"}
    assert load_dataset(workspace, "mine").card.groups == {"identity": 2, "near": 1}
    with pytest.raises(StudioError, match="no dataset"):
        start_reminders(workspace, "none")


def test_stopping_saves_nothing(workspace: Workspace, tiny_model: Path) -> None:
    job = start_persona(workspace, Persona(name="Alex"), "alex", str(tiny_model))
    job.request_stop()
    assert work(workspace, job) == {} and not (workspace.datasets / "alex").exists()


def test_a_plain_job_keeps_its_rows_to_itself(workspace: Workspace, tiny_model: Path) -> None:
    job = replay_job_of(workspace, str(tiny_model), [{"messages": [{"role": "user", "content": "a"}], "group": "near", "lang": "en"}], "x")
    assert "dataset" not in work(workspace, job) and data_jobs(workspace) == []
