"""Finding models and reading their headers: every damaged folder gets a sentence, and torch is never needed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import StudioError
from core.jobs.folder import create_job
from core.models import embedded
from core.models.catalogue import find_base, find_model, list_models, new_model_folder
from core.models.header import read_header, tensor_shapes
from core.runs import Run, find_run, list_runs
from core.workspace import write_json


@pytest.fixture
def folder(tiny_model: Path, workspace) -> Path:
    """A copy of the tiny model in the workspace, to damage."""
    return shutil.copytree(tiny_model, workspace.models / "tiny")


def change_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def write_header(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def problem_of(folder: Path) -> str:
    with pytest.raises(StudioError) as caught:
        read_header(folder)
    assert str(caught.value.hint)
    return str(caught.value.problem)


# headers


def test_the_header_says_what_the_weights_hold(tiny_model):
    header = read_header(tiny_model)
    from safetensors.numpy import load_file

    weights = load_file(tiny_model / "model.safetensors")
    assert header.parameters == sum(weight.size for weight in weights.values())
    assert header.weight_bytes == sum(weight.nbytes for weight in weights.values())
    assert tensor_shapes(tiny_model) == {name: ("F32", list(weight.shape)) for name, weight in weights.items()}
    assert header.model_dump(exclude={"parameters", "weight_bytes"}) == {
        "architecture": "LlamaForCausalLM", "model_type": "llama", "dtype": "F32", "context_tokens": 512, "vocabulary": 400,
        "hidden_size": 64, "layers": 2, "has_chat_template": True}


def test_the_template_may_stand_in_the_tokenizer_s_file(folder):
    (folder / "chat_template.jinja").unlink()
    assert not read_header(folder).has_chat_template
    change_json(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    assert read_header(folder).has_chat_template


def test_a_model_that_also_sees_keeps_its_facts_one_level_down(folder):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {"architectures": None, "model_type": "gemma3", "text_config": config})
    header = read_header(folder)
    assert (header.context_tokens, header.layers, header.architecture) == (512, 2, "?")


def test_facts_of_the_wrong_kind_are_left_out(folder):
    change_json(folder / "config.json", max_position_embeddings="long", architectures="Llama", vocab_size=None)
    header = read_header(folder)
    assert (header.context_tokens, header.architecture, header.vocabulary) == (None, "?", None)


def test_shards_are_added_up_and_a_missing_one_is_named(folder):
    from safetensors.numpy import load_file, save_file

    whole, tensors = read_header(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    write_json(folder / "model.safetensors.index.json",
               {"weight_map": {name: file for file, members in shards.items() for name in members}})
    assert read_header(folder) == whole
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert problem_of(folder).endswith("model-00002-of-00002.safetensors is missing (1 of 2 files).")
    for damaged in ({}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": "../tiny/model.safetensors"}}, []):
        write_json(folder / "model.safetensors.index.json", damaged)
        assert "model.safetensors.index.json is cut off or damaged" in problem_of(folder)


def test_a_folder_that_is_no_model(folder, tmp_path):
    assert "no model folder" in problem_of(tmp_path / "none")
    assert "no model folder" in problem_of(folder / "config.json")
    (folder / "config.json").unlink()
    assert "has no config.json" in problem_of(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter, not a model" in problem_of(folder)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[1]", "null"])
def test_a_config_that_cannot_be_read(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json is" in problem_of(folder)


def test_no_weights_or_only_pickles(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in problem_of(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pickles" in problem_of(folder)
    write_header(folder / "model.safetensors", {"__metadata__": {"format": "pt"}})
    assert "holds no weights" in problem_of(folder)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_weights_that_are_cut_off(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors is cut off or damaged" in problem_of(folder)


@pytest.mark.parametrize("header", [
    b"x" * 50, [], {"a": 1}, {"a": {}}, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 0]}}, {"a": {"dtype": "F32", "shape": [2], "data_offsets": []}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "0"]}}, b"[" * 9000])
def test_weights_whose_header_is_damaged(folder, header):
    write_header(folder / "model.safetensors", header)
    assert "model.safetensors is cut off or damaged" in problem_of(folder)


def test_a_damaged_model_does_not_hide_the_others(folder, tiny_model, workspace):
    shutil.copytree(tiny_model, workspace.models / "whole")
    (folder / "model.safetensors").write_bytes(b"")
    (workspace.models / ".half.123-ab.partial").mkdir()
    (workspace.models / "a-file").write_text("")
    found = {name: header for name, _, header in list_models(workspace)}
    assert list(found) == ["tiny", "whole"]
    assert isinstance(found["tiny"], StudioError) and found["whole"].parameters > 0


# finding


def test_a_model_by_name_and_by_folder(folder, workspace, monkeypatch):
    assert find_base(workspace, "tiny") == find_base(workspace, str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert find_base(workspace, "./tiny") == folder
    assert find_model(workspace, "tiny").adapter is None


@pytest.mark.parametrize(("source", "problem"), [
    ("nobody", "No model is called nobody"), ("../x", "no model folder at ../x"), ("/none/here", "no model folder at /none/here"),
    ("~nobody-of-this-name/x", "no model folder at ~nobody"), ("..", "cannot be the name of a model"),
    ("", "cannot be the name of a model"),
    ("x" * 300, "No model is called x"), ("/" + "x" * 300, "no model folder at"), ("小明", "No model is called 小明"),
    ("a/b/c", "No model is called a/b/c"), ("zero\0byte", "No model is called"), ("embedded", "not prepared yet"),
])
def test_what_is_no_model_gets_a_sentence(workspace, source, problem):
    with pytest.raises(StudioError, match=problem) as caught:
        find_base(workspace, source)
    assert str(caught.value.hint)


@pytest.mark.parametrize("hub_id", ["HuggingFaceTB/SmolLM2-135M-Instruct", "nobody/nothing", "a/b.git", "a/..", "a/b--c"])
def test_a_hub_id_without_network_gets_a_sentence(workspace, hub_id, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(StudioError, match=f"The model {hub_id} could not be fetched from the hub") as caught:
        find_base(workspace, hub_id)
    assert "\n" not in str(caught.value.problem) and "copy the model here" in str(caught.value.hint)


def test_names_for_new_models(folder, workspace):
    assert new_model_folder(workspace, "alex") == workspace.models / "alex"
    for taken in ("tiny", "embedded", embedded.EMBEDDED_NAME):
        with pytest.raises(StudioError, match=f"A model called {taken} exists already"):
            new_model_folder(workspace, taken)
    with pytest.raises(StudioError, match="cannot be the name of a model"):
        new_model_folder(workspace, "../x")


# the embedded model


def test_without_its_package_the_embedded_model_says_how_to_install_it(workspace, monkeypatch, tmp_path):
    for spec in (None, SimpleNamespace(origin=None), SimpleNamespace(origin=str(tmp_path / "__init__.py"))):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(StudioError, match="The embedded model is not installed") as caught:
            embedded.prepare_embedded(workspace)
        assert "make setup" in str(caught.value.hint)
    assert not embedded.is_prepared(workspace) and not embedded.embedded_folder(workspace).exists()


def test_another_file_in_its_place_is_refused(workspace, monkeypatch, tmp_path):
    wrong = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    wrong.write_bytes(b"GGUF and something else")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(StudioError, match="SHA-256 differs") as caught:
        embedded.prepare_embedded(workspace)
    assert str(wrong) in str(caught.value) and "force-reinstall" in str(caught.value.hint)


def test_the_packaged_file_is_the_expected_one():
    embedded.check_hash(embedded.gguf_file())


# checkpoints of runs, by name


@pytest.fixture
def run(workspace, tiny_model) -> Run:
    """A run as far as its folder goes: snapshots 2 and 10, no verdict."""
    made = Run(create_job(workspace.runs / "20260101-120000-alex-0a1b", "train", {"name": "alex", "updates": 10}).folder)
    for step in ("000002", "000010", "000010-copy", ".000012.1-ab.partial"):
        (made.folder / "checkpoints" / step).mkdir(parents=True)
    (made.folder / "recipe.yaml").write_text(
        f"model: {{source: {tiny_model}}}\ndata: {{sources: [{{dataset: alex}}], system: Be brief.}}\n", encoding="utf-8")
    return made


def test_a_checkpoint_by_its_run_and_step(run, workspace, tiny_model):
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 10]
    found = find_model(workspace, "alex@10*0.5")
    assert (found.base, found.adapter, found.strength, found.system) == (
        tiny_model, run.folder / "checkpoints" / "000010", 0.5, "Be brief.")
    assert find_model(workspace, "last@last").adapter == found.adapter
    base = find_model(workspace, f"{run.id}@0")
    assert (base.base, base.adapter, base.system) == (tiny_model, None, "Be brief.")


@pytest.mark.parametrize(("reference", "problem"), [
    ("alex@3", "saved no checkpoint '3'"), ("alex@", "saved no checkpoint ''"), ("alex@²", "saved no checkpoint"),
    ("alex@" + "9" * 5000, "saved no checkpoint"), ("alex@-2", "saved no checkpoint"), ("alex@../2", "saved no checkpoint"),
    ("alex@pick", "has no pick yet"), ("bob@2", "No run is called 'bob'"), ("@2", "No run is called ''"),
    ("../x@2", "No run is called '../x'"), ("alex@2*3", "'3' is no adapter strength"), ("alex@2*-1", "is no adapter strength"),
    ("alex@2*nan", "is no adapter strength"), ("alex@2*much", "is no adapter strength"),
])
def test_what_is_no_checkpoint_gets_a_sentence(run, workspace, reference, problem):
    with pytest.raises(StudioError, match=problem) as caught:
        find_model(workspace, reference)
    assert str(caught.value.hint)


def test_a_name_that_two_runs_share(run, workspace):
    create_job(workspace.runs / "20260102-120000-alexandra-0a1b", "train", {"updates": 1})
    (workspace.runs / "a-folder-of-mine").mkdir()
    assert [found.id[:8] for found in list_runs(workspace)] == ["20260102", "20260101"]
    with pytest.raises(StudioError, match="2 runs have alex in their names"):
        find_run(workspace, "alex")
    assert find_run(workspace, "alex-").id == run.id and find_run(workspace, "last").id.startswith("20260102")
