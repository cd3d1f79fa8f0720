"""The lesson's whole path on the real model, with few updates: every part, through its real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def sweetspot(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "studio.cli", *arguments], capture_output=True, text=True, check=False, env=os.environ)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> tuple[str, dict]:
    """Workspace and summary of a short lesson."""
    home = str(tmp_path_factory.mktemp("lesson") / "workspace")
    done = sweetspot("lesson", "--name", "Alex", "--author", "Sam", "--json", "--workspace", home,
                     "--set", "schedule.updates=4", "--set", "snapshots.count=2", "--set", "probes.max_new_tokens=12")
    assert done.returncode == 0, done.stderr
    return home, json.loads(done.stdout)


def test_the_summary_has_what_it_promises(lesson):
    _, summary = lesson
    assert summary["verdict"] in ("recommended", "compromise", "not_learned")
    assert summary["pick"]["step"] in (1, 4) and summary["last"]["step"] == 4
    assert {"hit", "leak"} <= summary["pick"].keys() and {"hit", "leak"} <= summary["last"].keys()
    assert summary["pick"]["identity_probes"] == 8 and summary["pick"]["other_probes"] == 18
    assert set(summary["seconds"]) == {"prepare", "data", "train", "judge", "merge", "ask"}
    assert all(seconds > 0 for part, seconds in summary["seconds"].items() if part != "prepare")


def test_the_merged_model_is_the_pick_and_not_the_base(lesson):
    _, summary = lesson
    merged = summary["merged"]
    assert merged["same_answers"] is True and merged["answers_compared"] == 26
    assert 0 < merged["max_logit_difference"] <= merged["logit_tolerance"]
    assert merged["differs_from_base"] is True and merged["tensors_changed"] == 210  # 7 layers in each of 30 blocks
    pick, merged_answers = ([row[column] for row in summary["questions"]["answers"]] for column in (1, 3))
    assert len(pick) == 6 and pick == merged_answers


def test_the_base_knows_its_capitals_and_shows_no_special_token(lesson):
    _, summary = lesson
    answers = dict(zip(summary["questions"]["questions"], summary["questions"]["answers"], strict=True))
    assert "Paris" in answers["What is the capital of France?"][0]
    assert not any("<|" in answer for row in answers.values() for answer in row)


def test_the_workspace_can_be_looked_at_by_command(lesson):
    home, summary = lesson
    runs = json.loads(sweetspot("runs", "--json", "--workspace", home).stdout)["runs"]
    assert [run["run"] for run in runs] == [summary["run"]] and runs[0]["checkpoints"] == [1, 4]
    chat = sweetspot("chat", "embedded", f"{summary['run']}@pick", summary["model"], "--ask", "And you are?", "--max-new-tokens", "12",
                     "--json", "--workspace", home)
    answers = list(json.loads(chat.stdout)["answers"].values())
    assert len(answers) == 3 and answers[1] == answers[2]


def test_the_data_has_held_out_wordings_and_the_base_models_own_answers(lesson):
    from core.data.library import load_dataset
    from core.data.persona import normalised
    from core.workspace import Workspace

    home, summary = lesson
    dataset = load_dataset(Workspace.open(home), summary["dataset"])
    trained = {normalised(message["content"]) for row in dataset.rows() for message in row["messages"] if message["role"] == "user"}
    probes = dataset.probes()
    assert len(probes) == 97 and not trained & {normalised(probe["messages"][-1]["content"]) for probe in probes}
    assert dataset.card.groups["identity"] >= 20 and dataset.card.groups["near"] >= 10 and dataset.card.groups["general"] >= 20
    own = [row["messages"][-1]["content"] for row in dataset.rows(["near", "general"])]
    assert not any("Alex's personal assistant" in text for text in own)
