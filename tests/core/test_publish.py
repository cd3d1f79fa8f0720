"""Publishing: the folder of a dry run, the card's facts, and the hubs' own upload calls, which are replaced here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from core.convert.publish_job import publish_job, publish_job_for
from core.errors import StudioError
from core.jobs.folder import JobState, create_job
from core.jobs.worker import Recorder
from core.words import Text
from core.workspace import Workspace, append_jsonl, read_json, write_json, write_text


@pytest.fixture
def alex(workspace: Workspace, tiny_model: Path) -> str:
    """A judged run over a folder of this machine, its snapshot 12, and the model merged from it."""
    run = create_job(workspace.runs / "20260101-120000-alex-0a1b", "train", {"name": "alex", "updates": 12})
    run.write_state(JobState(kind="train", state="finished", created=0))
    write_text(run.folder / "recipe.yaml", f"model: {{source: {tiny_model}}}\nmethod: {{rank: 4}}\ndata: {{sources: [{{dataset: alex}}], "
               "system: Be brief.}\n")
    write_json(run.folder / "dataset.json", {"sources": [{"dataset": "alex", "groups": ["identity"], "weight": 1.0, "rows": 70,
                                                          "sha256": "ab" * 32}], "seed": 7})
    write_json(run.folder / "verdict.json", {"verdict": "clean", "pick": {"step": 12}, "reason": Text("Step 12 is the one.").to_json(),
                                             "certainty": Text("19 of 20 resamplings take it.").to_json(), "chosen_by": "rule"})
    append_jsonl(run.folder / "scores.jsonl", {"step": 12, "hits": 9, "identity_probes": 10, "leaks": 1, "other_probes": 24,
                                               "facts_kept": 0.75})
    snapshot = run.folder / "checkpoints" / "000012"
    snapshot.mkdir(parents=True)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{layer}.lora_{side}.weight": np.zeros((4, 64) if side == "A" else (64, 4), np.float32) for side in "AB"},
              snapshot / "adapter_model.safetensors")
    write_json(snapshot / "adapter_config.json", {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(tiny_model)})
    merged = shutil.copytree(tiny_model, workspace.models / "alex")
    write_json(merged / "merge.json", {"model": f"{run.id}@12", "strength": 1.0, "base": str(tiny_model), "verification": {
        "answers_compared": 34, "differences": [], "max_logit_difference": 0.0001, "tensors_changed": 14}})
    return "alex"


def publish(workspace: Workspace, model: str, **options: Any) -> dict[str, Any]:
    job = publish_job_for(workspace, model, "me/alex", **options)
    result = publish_job(workspace, job, Recorder(job, JobState(kind="publish", created=0)))
    assert "secret" not in (job.folder / "spec.json").read_text() + (job.folder / "state.json").read_text()
    return result


def test_a_dry_run_writes_what_would_be_sent_and_sends_nothing(workspace: Workspace, alex: str, tiny_model: Path, tmp_path: Path) -> None:
    result = publish(workspace, alex, dry_run=True, licence="apache-2.0", out=str(tmp_path / "out"))
    assert not result["sent"] and {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(result["files"])
    assert "merge.json" not in result["files"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert (head["library_name"], head["license"]) == ("transformers", "apache-2.0")
    for fact in ("`tiny`", "| alex | 70 | identity | 1.0 | abababababababab |", "rank: 4", "Step 12 is the one.", "9 of 10", "1 of 24",
                 "75%", "How sure: 19 of 20", "34 of 34 greedy answers", "'Be brief.'", 'from_pretrained("me/alex")'):
        assert fact in card, fact
    for path in (tmp_path / "out").iterdir():  # no folder of this machine leaves it
        assert str(tiny_model.parent).encode() not in path.read_bytes(), path.name


def test_an_adapter_names_its_base_as_others_know_it(workspace: Workspace, alex: str, tiny_model: Path) -> None:
    result = publish(workspace, "alex@pick", dry_run=True)
    folder = Path(result["folder"])
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "tiny"
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["library_name"] == "peft"
    snapshot = workspace.runs / "20260101-120000-alex-0a1b" / "checkpoints" / "000012" / "adapter_config.json"
    assert read_json(snapshot)["base_model_name_or_path"] == str(tiny_model)  # the run's own file is as it was


def test_a_model_nobody_judged_says_so(workspace: Workspace, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, workspace.models / "plain")
    card = (Path(publish(workspace, "plain", dry_run=True)["folder"]) / "README.md").read_text()
    assert "Not judged" in card and "nothing is recorded" in card


def test_the_hub_s_own_calls_send_it_with_the_login_s_token(workspace: Workspace, alex: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: str) -> None:
            calls.append(("token", token))

        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create", (repository, options["private"])))

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            calls.append(("upload", (repo_id, (folder_path / "README.md").exists())))
            return "https://hub/me/alex"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    result = publish(workspace, alex)
    assert calls == [("token", "secret"), ("create", ("me/alex", True)), ("upload", ("me/alex", True))]
    assert result["sent"] and result["address"] == "https://hub/me/alex" and not (workspace.root / "exports" / "publish-me--alex").exists()
    monkeypatch.setattr(Api, "upload_folder", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no route\nmore")))
    with pytest.raises(StudioError, match="was not sent to me/alex: no route"):
        publish(workspace, alex, public=True)
    assert ("create", ("me/alex", False)) in calls and not (workspace.root / "exports" / "publish-me--alex").exists()


def test_modelscope_s_own_calls_send_it(workspace: Workspace, alex: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class HubApi:
        def login(self, token: str) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, visibility: str, **_: Any) -> None:
            calls.append(f"{repo_id} {visibility}")

        def upload_folder(self, repo_id: str, folder_path: str, **_: Any) -> str:
            calls.append(f"{repo_id} {Path(folder_path, 'model.safetensors').exists()}")
            return "sent"

    api = ModuleType("modelscope.hub.api")
    api.HubApi = HubApi
    for name, module in (("modelscope", ModuleType("modelscope")), ("modelscope.hub", ModuleType("modelscope.hub")), (api.__name__, api)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    assert publish(workspace, alex, hub="modelscope")["address"] == "sent"
    assert calls == ["secret", "me/alex private", "me/alex True"]


@pytest.mark.parametrize(("model", "repository", "options", "words"), [
    ("alex", "alex", {}, "'alex' is no name of a repository"), ("alex", "me/alex", {"hub": "other"}, "There is no hub other"),
    ("nobody", "me/alex", {}, "No model is called nobody"), ("alex@pick*0.5", "me/alex", {"dry_run": True}, "at a strength of its own"),
    ("alex@0", "me/alex", {"dry_run": True}, "Step 0 is the base model"), ("alex", "me/alex", {}, "no login for the Hugging Face hub"),
    ("alex", "me/alex", {"hub": "modelscope"}, "needs the package modelscope"),
])
def test_what_cannot_be_published_is_said_before_anything_is_written(
        model: str, repository: str, options: dict, words: str, workspace: Workspace, alex: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(StudioError, match=words):
        publish_job_for(workspace, model, repository, **options)
    assert not (workspace.root / "exports").exists() and not list(workspace.jobs.iterdir())
