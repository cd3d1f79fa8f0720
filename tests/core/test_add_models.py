"""Adding, describing and deleting models: from folders, GGUF files and hubs that are not reached."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.convert.gguf_export import export_gguf
from core.data.encode import Encoder
from core.errors import StudioError
from core.housekeeping import uses
from core.jobs.folder import Job, JobState, create_job
from core.jobs.worker import Recorder
from core.merge.library import delete_merged
from core.models import embedded
from core.models.add import add_job, add_model_job, find_origin, wanted_files
from core.models.catalogue import find_base, find_local_base, list_models
from core.models.delete import delete_model
from core.models.describe import describe_model
from core.workspace import Workspace, read_json, write_json, write_text


def add(workspace: Workspace, source: str, name: str | None = None, copy: bool = False) -> dict[str, Any]:
    job = add_model_job(workspace, source, name, copy)
    result = add_job(workspace, job, Recorder(job, JobState(kind="add-model", created=0)))
    job.write_state(JobState(kind="add-model", state="finished", created=0))
    return result


def test_a_folder_is_linked_or_copied_and_a_deleted_link_keeps_it(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "My Model")
    assert add(workspace, str(folder))["name"] == "my-model"
    assert add(workspace, str(folder))["name"] == "my-model-2"
    assert add(workspace, str(folder), "own", copy=True)["folder"] == str(workspace.models / "own")
    assert [name for name, _, header in list_models(workspace) if not isinstance(header, StudioError)] == ["my-model", "my-model-2", "own"]
    assert (workspace.models / "my-model").is_symlink() and not (workspace.models / "own").is_symlink()
    delete_model(workspace, "my-model")
    delete_model(workspace, "own")
    assert (folder / "model.safetensors").exists() and [entry[0] for entry in list_models(workspace)] == ["my-model-2"]


def test_what_is_damaged_is_never_listed(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StudioError, match="has no tokenizer.json"):
        add(workspace, str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(StudioError, match="has no config.json"):
        add_model_job(workspace, str(folder))
    assert list_models(workspace) == []


def test_a_name_of_two_meanings_is_not_guessed(workspace: Workspace, tiny_model: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_model, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    for look in (find_origin, lambda source: find_base(workspace, source), lambda source: find_local_base(workspace, source)):
        with pytest.raises(StudioError, match="org/name is a folder here and the form of a hub id") as caught:
            look("org/name")
        assert "./org/name for the folder, or hf:org/name" in str(caught.value.hint)
    assert find_origin("./org/name").kind == "folder" and find_origin("hf:org/name").kind == "hub"
    assert find_base(workspace, "./org/name") == tmp_path / "org" / "name"
    assert find_origin("modelscope:org/name").kind == "modelscope" and find_origin("other/name").kind == "hub"
    for wrong in ("", "nothing here", "a/b/c", "modelscope:x", "x\0y", "~nobody-here/x"):
        with pytest.raises(StudioError, match="There is no model at"):
            find_origin(wrong)


def _reads_alike_in_both_versions(folder: Path) -> None:
    """transformers 4.57 reads `rope_theta` and takes 10000 where it is missing; version 5 writes it elsewhere."""
    config, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and config["torch_dtype"] == config["dtype"]
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "token_type_ids" not in tokenizer["model_input_names"]


def test_a_gguf_file_becomes_an_ordinary_model(workspace: Workspace, tiny_model: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "Tiny.Q8_0.gguf"
    export_gguf(tiny_model, file, "f32", "tiny", lambda done, total: None)
    folder = Path(add(workspace, str(file))["folder"])
    assert folder.name == "tiny.q8_0"
    text = Encoder.from_folder(tiny_model).render([{"role": "user", "content": "Who are you? 你是谁？"}], add_generation_prompt=True)
    first, second = (Encoder.from_folder(place).tokenizer.encode(text, add_special_tokens=False).ids for place in (tiny_model, folder))
    assert first == second
    _reads_alike_in_both_versions(folder)
    monkeypatch.setattr(embedded, "gguf_file", lambda: file)
    monkeypatch.setattr(embedded, "check_hash", lambda path: None)
    _reads_alike_in_both_versions(embedded.prepare_embedded(workspace))
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(StudioError, match="cannot be read|cut off or damaged"):
        add(workspace, str(file), "half")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(StudioError, match="is no GGUF file"):
        find_origin(str(tmp_path / "notes.txt"))
    assert not (workspace.models / "half").exists()


def test_without_network_or_library_it_is_said_how_to_go_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudioError, match="org/name could not be fetched from the hub") as caught:
        add(workspace, "org/name")
    assert "HF_ENDPOINT" in str(caught.value.hint) and "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(StudioError, match="needs the package modelscope") as caught:
        add(workspace, "modelscope:org/name")
    assert "pip install modelscope" in str(caught.value.hint)
    assert list_models(workspace) == []


def test_modelscope_s_library_fetches_and_its_failures_are_words(workspace: Workspace, tiny_model: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        return str(tiny_model)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    assert add(workspace, "modelscope:org/name")["name"] == "name"
    assert asked["model"] == "org/name" and "*.py" not in asked["allow_patterns"]

    def fail(model: str, **_: Any) -> str:
        raise ValueError("no such model\nTraceback")

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=fail))
    with pytest.raises(StudioError, match="could not be fetched from ModelScope: no such model"):
        add(workspace, "modelscope:org/other")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> dict[str, Any]:
    """A hub that holds the tiny model, asked through the library's own calls."""
    files = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in tiny_model.iterdir()]
    files += [SimpleNamespace(rfilename="modeling_own.py", size=9), SimpleNamespace(rfilename="onnx/model.onnx", size=9)]
    seen: dict[str, Any] = {"files": []}

    class Api:
        def model_info(self, repository: str, **_: Any) -> Any:
            return SimpleNamespace(siblings=files, sha="abc")

    def download(repository: str, file: str, revision: str, tqdm_class: Any) -> str:
        seen["files"].append(file)
        with tqdm_class(total=10, disable=True) as bar:
            bar.update(10)
        return str(tiny_model / file)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return seen


def test_from_the_hub_only_what_a_model_needs_is_fetched(workspace: Workspace, hub: dict[str, Any]) -> None:
    assert add(workspace, "org/Tiny-Chat")["name"] == "tiny-chat"
    assert "model.safetensors" in hub["files"] and not [file for file in hub["files"] if file.endswith((".py", ".onnx"))]


def test_a_stopped_download_is_not_listed(workspace: Workspace, hub: dict[str, Any]) -> None:
    job = add_model_job(workspace, "org/tiny")
    job.request_stop()
    recorder = Recorder(job, JobState(kind="add-model", created=0))
    assert add_job(workspace, job, recorder) == {} and recorder.told_to_stop
    assert list_models(workspace) == [] and hub["files"] == []


def test_repositories_of_pickles_are_refused_but_internlm2_s() -> None:
    with pytest.raises(StudioError, match="has no .safetensors weights"):
        wanted_files({"config.json": 1, "pytorch_model.bin": 5}, "org/old")
    files = {"config.json": 1, "tokenizer.model": 2, "pytorch_model-00001-of-00002.bin": 5, "modeling_internlm2.py": 3}
    assert set(wanted_files(files, "internlm/internlm2-chat-1_8b")) == set(files) - {"modeling_internlm2.py"}


def test_facts_and_memory_from_headers(tiny_model: Path, tmp_path: Path) -> None:
    facts = describe_model(tiny_model, "cpu")
    assert (facts["kind"], facts["end_tokens"], facts["problem"], facts["context_tokens"]) == ("chat", ["<|im_end|>"], None, 512)
    assert facts["template"].endswith("<|im_start|>assistant\n")
    trained = facts["memory_to_train"]
    assert trained["full"] > trained["lora"] > facts["memory_to_chat"] > 4 * facts["parameters"]
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    assert (describe_model(base, "cpu")["kind"], describe_model(base, "cpu")["problem"]) == ("base", None)
    (base / "tokenizer.json").write_text("{")
    assert "cut off or damaged" in describe_model(base, "cpu")["problem"]


def test_a_model_in_use_is_kept_and_it_is_said_by_what(workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_model, workspace.models / "alex")
    write_json(workspace.models / "alex" / "merge.json", {})
    run = create_job(workspace.runs / "20260101-120000-course-0a1b", "train", {"updates": 1})
    run.write_state(JobState(kind="train", state="finished", created=0))
    write_text(run.folder / "recipe.yaml", "model: {source: alex}\n")
    for delete in (delete_model, delete_merged):
        with pytest.raises(StudioError, match="alex is in use: it is the base of the run 20260101-120000-course-0a1b"):
            delete(workspace, "alex")
    shutil.rmtree(run.folder)
    job: Job = create_job(workspace.jobs / "20260101-120000-gguf-alex-0a1b", "gguf", {"model": "alex"})
    with pytest.raises(StudioError, match="in use: the job 20260101-120000-gguf"):
        delete_model(workspace, "alex")
    job.write_state(JobState(kind="gguf", state="finished", created=0))
    held = {"folders": [str(workspace.models / "alex")]}
    (workspace.cache / "serve-7").mkdir()
    monkeypatch.setattr(uses, "find_worker", lambda _, place: place if place.name == "serve-7" else None)
    monkeypatch.setattr(uses, "call", lambda handle, method, path: held)
    for delete in (delete_model, delete_merged):
        with pytest.raises(StudioError, match="a server holds it in memory"):
            delete(workspace, "alex")
    held["folders"] = []
    delete_merged(workspace, "alex")
    assert list(workspace.models.iterdir()) == []
    with pytest.raises(StudioError, match="No model is called alex"):
        delete_model(workspace, "alex")
