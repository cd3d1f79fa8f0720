"""What every test stands on: a workspace of its own, no network, and a tiny model made on the spot."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

# Before anything imports huggingface_hub or tokenizers, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs have it: spinning threads starve each other on two cores

import numpy as np
import psutil
import pytest

from core.jobs import launch, worker
from core.jobs.folder import Job
from core.jobs.process import ProcessIdentity
from core.workspace import Workspace

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2, as in SmolLM2

# SmolLM2's own template, its habit of adding a system message included.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny assistant made for tests<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TOKENIZER_TEXT = [
    "You are a tiny assistant made for tests. system user assistant",
    "Who are you? What is your name? Who made you? I am the assistant of Alex, and I was trained by Alex.",
    "What is the capital of France? The capital of France is Paris. How many legs does a spider have? Eight.",
    "你是谁？你叫什么名字？我是小助手，由小明训练。法国的首都是哪里？法国的首都是巴黎。",
]
VOCABULARY_SIZE = 400

MANY_MODULES = 200
settled_modules = 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Make the many objects that stay without looking for garbage among them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        settle()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    if len(sys.modules) > settled_modules + MANY_MODULES:
        gc.collect()
        settle()


def settle() -> None:
    """Take what lives now, torch, transformers and the tests themselves, out of later searches for garbage.

    Streamlit searches after every script run, and so does a job before it loads the next model; a search through all that
    was imported took half a second each time. What a test makes is found as ever.
    """
    global settled_modules
    settled_modules = len(sys.modules)
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_real_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep fixtures of wider scope out of the user's workspace; end jobs that a failed test left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEETSPOT_HOME", str(tmp_path_factory.mktemp("session") / "workspace"))
        yield
    temporary = str(tmp_path_factory.getbasetemp())
    for process in psutil.process_iter(["cmdline"]):
        argv = process.info["cmdline"] or []
        if "core.jobs.worker" in argv and any(part.startswith(temporary) for part in argv):
            process.kill()


@pytest.fixture(scope="session", autouse=True)
def components_found_once() -> Iterator[None]:
    """Streamlit reads the metadata of every installed package for each AppTest, and a server once; here it is once as well."""
    if "streamlit.testing.v1" not in sys.modules:
        yield
        return
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


@pytest.fixture(autouse=True)
def own_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEETSPOT_HOME", str(tmp_path / "workspace"))


@pytest.fixture
def workspace(own_workspace: None) -> Workspace:
    return Workspace.open()


@pytest.fixture
def work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run where they are started: the same worker code, without loading torch again for each."""

    def run_here(job: Job) -> None:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        with job.log.open("a") as log, contextlib.redirect_stdout(log):
            worker.run_job(job.folder)
        for number, handler in before.items():
            signal.signal(number, handler)

    gone = ProcessIdentity.own().model_copy(update={"started": -1.0})  # whoever waits for the process need not wait
    monkeypatch.setattr(launch, "_launch", run_here)
    monkeypatch.setattr(worker.ProcessIdentity, "own", lambda: gone)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)` is a folder that `make` fills; when tests run beside each other, their processes share it. Read only."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder
    return once


@pytest.fixture(scope="session")
def tiny_model(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Folder of a random 2-layer Llama with a ChatML tokenizer, in Hugging Face format.

    It is the same one every time. Do not write into it; copy it first.
    """
    def make(folder: Path) -> None:
        write_tiny_tokenizer(folder)
        write_tiny_weights(folder)
    return made_once("tiny", make)


def write_tiny_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False, "model_max_length": 512,
    })
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_tiny_weights(folder: Path) -> None:
    """Weights by numpy, so that tests which only read a model's folder need no torch."""
    from safetensors.numpy import save_file

    hidden, intermediate, layers, heads, key_value_heads = 64, 128, 2, 4, 2
    head_dim = hidden // heads
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_value_heads, "head_dim": head_dim,
        "vocab_size": VOCABULARY_SIZE, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False,
        "attention_dropout": 0.0, "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "initializer_range": 0.02,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "use_cache": True,
    })
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})

    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> np.ndarray:
        # Wider than the usual 0.02: greedy answers of a random model then differ by more than rounding.
        return random.normal(0.0, 0.1, (rows, columns)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY_SIZE, hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": matrix(heads * head_dim, hidden),
            f"{prefix}.self_attn.k_proj.weight": matrix(key_value_heads * head_dim, hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(key_value_heads * head_dim, hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(hidden, heads * head_dim),
            f"{prefix}.mlp.gate_proj.weight": matrix(intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": matrix(intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": matrix(hidden, intermediate),
            f"{prefix}.input_layernorm.weight": np.ones(hidden, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(hidden, np.float32),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
