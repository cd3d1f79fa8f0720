"""Any causal language model that transformers knows by itself: also those whose layers are not Llama's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core.chat.engine import Engine
from core.chat.stacked import Adapter
from core.data.encode import Encoder
from core.errors import StudioError
from core.jobs.worker import Recorder
from core.merge.weights import merge_weights
from core.runs import Run
from core.train.create import create_run
from core.train.looks import LookPace
from core.train.worker import Training
from core.workspace import Workspace
from tests.core.conftest import losses_of, save_tiny_dataset, tiny_recipe

SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "qwen2_moe": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
                  "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "gemma2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
               "head_dim": 8},
}
ADAPTED = {"gpt2": {"c_attn", "c_proj", "c_fc"}, "mamba": {"in_proj", "x_proj"}}


def random_model(family: str, tiny_model: Path, folder: Path) -> Path:
    """A random model of a family with the tiny tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=AutoConfig.from_pretrained(tiny_model).vocab_size, bos_token_id=1, eos_token_id=2,
                                  pad_token_id=2, **SIZES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, folder / name)
    return folder


def train(workspace: Workspace, base: Path) -> Run:
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(base, schedule__updates=4, snapshots__count=1, data__packing=True), "family")
    Training(workspace, run, Recorder(run, run.state())).run_to_end()
    return run


@pytest.mark.parametrize("family", SIZES)
def test_every_family_learns_with_the_recipe_as_it_is(workspace, tiny_model, tmp_path, monkeypatch, family):
    from safetensors.torch import load_file

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(LookPace, "can_pay", lambda *_: True)  # so that it is looked at and answers at every turn
    run = train(workspace, random_model(family, tiny_model, tmp_path / family))
    assert [look["update"] for look in run.watch()] == [0, 1, 2, 3, 4]
    assert all(bool(look["answers"]) == (family != "mamba") for look in run.watch()[1:])
    assert losses_of(run)[-1] < losses_of(run)[0]
    learned = load_file(run.checkpoints()[-1].folder / "adapter_model.safetensors")
    found = {name.split(".lora_B")[0].rsplit(".", 1)[-1] for name, value in learned.items() if "lora_B" in name}
    assert ADAPTED.get(family, {"q_proj"}) <= found, found
    idle = [name for name, value in learned.items() if "lora_B" in name and not value.any()]
    assert not idle, "an adapter that learns nothing is over a layer that nobody calls"


def test_gpt2s_turned_weights_are_stacked_and_merged_alike(workspace, tiny_model, tmp_path, monkeypatch):
    """Its layers hold (in, out), and of a square one the shape does not tell."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = random_model("gpt2", tiny_model, tmp_path / "gpt2")
    folder = train(workspace, base).checkpoints()[-1].folder
    (tmp_path / "merged").mkdir()
    assert merge_weights(base, Adapter("last", folder), tmp_path / "merged", "auto", lambda *_: None) == 8
    encoder = Encoder.from_folder(base)
    prompt = encoder.encode_prompt([{"role": "user", "content": "Who are you?"}])
    places = ((base, [Adapter("base")]), (base, [Adapter("last", folder)]), (tmp_path / "merged", [Adapter("model")]))
    engines = [Engine.load(where, adapters, end_ids=encoder.end_ids, pad_id=encoder.pad_id()) for where, adapters in places]
    plain, stacked, merged = (engine.logits(0, prompt) for engine in engines)
    torch.testing.assert_close(merged, stacked, rtol=1e-4, atol=1e-5)
    assert (stacked - plain).abs().max() > 1e-2


def test_a_mamba_is_not_asked_and_says_why(tiny_model, tmp_path):
    """Its answers would be made of each token alone."""
    base = random_model("mamba", tiny_model, tmp_path / "mamba")
    with pytest.raises(StudioError, match="family mamba can be trained here, and not asked"):
        Engine.load(base, [Adapter("base")], end_ids=[2], pad_id=2)
