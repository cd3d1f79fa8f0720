"""Model folders and adapters whose parts do not belong together: told from headers, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.data.encode import Encoder
from core.errors import StudioError
from core.models.check import check_adapter, check_model
from core.workspace import write_json


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to damage."""
    return shutil.copytree(tiny_model, tmp_path / "tiny")


def change_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)

def test_a_tokenizer_that_is_missing_damaged_or_of_another_model(folder):
    check_model(folder)
    change_json(folder / "tokenizer.json", added_tokens=[{"id": 400, "content": "<new>"}])
    with pytest.raises(StudioError, match="has 401 tokens, but the model only knows 400"):
        check_model(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(StudioError, match="tokenizer.json is cut off or damaged"):
        check_model(folder)
    with pytest.raises(StudioError, match="tokenizer.json is cut off or damaged"):
        Encoder.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StudioError, match="has no tokenizer.json"):
        check_model(folder)


@pytest.mark.parametrize("change", [{"hidden_size": 128}, {"vocab_size": 401}])
def test_weights_of_another_config_are_told_before_they_are_loaded(folder, change):
    change_json(folder / "config.json", **change)
    with pytest.raises(StudioError, match=r"do not fit config.json: model.embed_tokens.weight is \[400, 64\] instead of"):
        check_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_settings_of_a_tokenizer_that_are_damaged(folder, text):
    (folder / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StudioError, match="tokenizer_config.json is cut off or damaged"):
        Encoder.from_folder(folder)


def write_adapter(folder: Path, shape: tuple[int, int], layer: str = "model.layers.0.self_attn.q_proj") -> Path:
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "its/own-base"})
    save_file({f"base_model.model.{layer}.lora_A.weight": np.zeros((2, shape[1]), np.float32),
               f"base_model.model.{layer}.lora_B.weight": np.zeros((shape[0], 2), np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_of_another_base_is_told_from_the_headers_and_names_its_own(folder, tmp_path):
    check_adapter(write_adapter(tmp_path / "fits", (64, 64)), folder)
    check_adapter(write_adapter(tmp_path / "head", (400, 64), "lm_head"), folder)  # tied to the embedding
    for name, adapter in {"shape": write_adapter(tmp_path / "shape", (128, 64)),
                          "names": write_adapter(tmp_path / "names", (64, 64), "transformer.h.0.attn")}.items():
        with pytest.raises(StudioError, match="It was made for its/own-base"):
            check_adapter(adapter, folder)
        assert (adapter / "adapter_model.safetensors").exists(), name
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(StudioError, match="holds no weights"):
        check_adapter(adapter, folder)
    (adapter / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(StudioError, match="pickles"):
        check_adapter(adapter, folder)
