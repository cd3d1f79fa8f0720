"""Secrets do not reach a file: with tokens made up for these tests."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.jobs.folder import create_job
from core.recipe.draft import write_draft
from core.recipe.files import save_recipe
from core.redact import MASK, RedactedStream, redact, redact_data
from core.train.create import create_run
from core.words import Text
from core.workspace import CHECKOUT, Workspace
from tests.core.conftest import save_tiny_dataset, tiny_recipe

FAKE = "hf_" + "abcDEF123456" * 3


@pytest.mark.parametrize("text", [
    f"401 for {FAKE}.", f"Authorization: Bearer {'z' * 24}", "key sk-" + "a1" * 16, "https://ana:s3cr3tpass@host/x", "ghp_" + "A1b2" * 9,
    "eyJ" + "a" * 20 + "." + "b" * 20 + "." + "c" * 20, "https://host/f?download=1&X-Amz-Signature=" + "0a1b" * 16 + "&x=1",
    "https://host/v1?api_key=qwertz123", "GET /x?access_token=qwertz123 HTTP/1.1", "https://" + "T0kEn" * 5 + "@host/x.git",
    "{'x-api-key': 'qwertz123'}", "Cookie: sweetspot_session_6006=qwertz123"])
def test_tokens_of_known_shapes_are_masked(text: str) -> None:
    assert MASK in redact(text)
    for secret in ("0a1b" * 16, "qwertz123", "T0kEn" * 5, FAKE, "z" * 24, "a1" * 16, "s3cr3tpass", "A1b2" * 9, "b" * 20):
        assert secret not in redact(text)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "eyJ-" * 50_000, "bearer " * 50_000, "a://b:" * 50_000, "?a" * 500_000,
                                  "a://" + "b" * 1_000_000, "cookie" * 100_000, "&" + "a-" * 500_000])
def test_a_long_line_is_looked_through_in_seconds(text: str) -> None:
    began = time.thread_time()
    redact(text)
    assert time.thread_time() - began < 3


@pytest.mark.parametrize("text", ["step 12 of 36", "https://host/data?split=train&monkey=1", "https://docs.example/a-page-with-a-long-name@v2",
                                  "https://host:8000/v1", "the token budget is 256", "sha256 " + "0a" * 32, "user@host",
                                  "run 20261122-151408-alex-3f2a", "你好：世界", ""])
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_the_environment_are_masked_whatever_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HUB_TOKEN", "plainwordsecret")
    monkeypatch.setenv("SHORT_KEY", "on")
    monkeypatch.setenv("MY_SECRET_KEY", "/slash+first/secret")
    monkeypatch.setenv("MY_AUTH_SOCK", str(Path(__file__)))
    assert redact(f"with /slash+first/secret in {__file__}") == f"with {MASK} in {__file__}"
    assert redact_data({"a": ["x plainwordsecret y", 3, None], "plainwordsecret": True}) == {"a": [f"x {MASK} y", 3, None],
                                                                                            "plainwordsecret": True}
    assert redact("on and on") == "on and on"


def test_log_masks_a_token_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = io.StringIO()
    stream = RedactedStream(behind)
    for piece in ("begin ", FAKE[:10], FAKE[10:], " end\nlast ", FAKE):
        stream.write(piece)
    stream.finish()
    assert behind.getvalue() == f"begin {MASK} end\nlast {MASK}"


def test_worker_s_log_and_state_are_masked(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real worker process whose work fails with the token in its words."""
    monkeypatch.setenv("HF_TOKEN", "a-token-without-shape")
    monkeypatch.setenv("SWEETSPOT_ROOTS", "")  # the refusal names the path, and the path holds the tokens
    job = create_job(workspace.jobs / "20260101-000000-import-x-0000", "import", {
        "source": f"/nothing/{FAKE}/a-token-without-shape", "is_set": False, "dataset": "x", "shown_name": None, "subset": None,
        "split": None, "is_upload": False, "reading": {"layout": None, "columns": {}, "group": "general"}})
    done = subprocess.run([sys.executable, "-m", "core.jobs.worker", str(job.folder)], cwd=CHECKOUT, capture_output=True, text=True,
                          timeout=60, check=False)
    state = (job.folder / "state.json").read_text(encoding="utf-8")
    assert done.returncode == 1 and json.loads(state)["state"] == "failed"
    for written in (done.stdout, done.stderr, state):
        assert FAKE not in written and "a-token-without-shape" not in written
    assert MASK in done.stdout and MASK in state


def test_logs_of_a_rank_and_of_the_chat_process_are_masked(workspace: Workspace, tmp_path: Path) -> None:
    """Real processes that fail over a path with the token in it."""
    folder = workspace.runs / f"run-{FAKE}"
    (folder / "ranks").mkdir(parents=True)
    (tmp_path / FAKE).write_text("no folder", encoding="utf-8")
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for command, environment in ((["core.train.rank", str(folder)], rank), (["core.chat.worker", str(tmp_path / FAKE / "chat")], {})):
        done = subprocess.run([sys.executable, "-m", *command], cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode != 0 and MASK in done.stdout + done.stderr and FAKE not in done.stdout + done.stderr, command
    failed = (folder / "ranks" / "failed-0.json").read_text(encoding="utf-8")
    assert MASK in failed and FAKE not in failed


def test_states_events_recipes_and_environments_are_masked(workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_dataset(workspace)
    monkeypatch.setattr(sys, "argv", ["sweetspot", "train", f"--set=hub={FAKE}"])
    recipe = tiny_recipe(tiny_model, data__system=f"Use {FAKE}.")
    run = create_run(workspace, recipe, "tiny")
    run.event("note", text=f"told {FAKE}")
    run.write_state(run.state().model_copy(update={"problem": Text("It said {what}.", what=FAKE).to_json()}))
    write_draft(workspace, "draft", f"title: {FAKE}\n")
    save_recipe(workspace, "kept", recipe)
    written = [path for path in workspace.root.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".txt")]
    names = {path.name for path in written}
    assert {"environment.json", "recipe.yaml", "state.json", "events.jsonl", "kept.yaml", "draft.yaml"} <= names
    assert [path.name for path in written if FAKE in path.read_text(encoding="utf-8")] == []
    assert sum(MASK in path.read_text(encoding="utf-8") for path in written) >= 6
