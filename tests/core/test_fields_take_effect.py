"""Each field of a recipe does what it says: those that decide what is learned change the weights, those that say how do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.data.library import save_dataset
from core.jobs.worker import Recorder
from core.recipe import Recipe, change_recipe, fields
from core.recipe.setting import setting_at
from core.runs import Run
from core.train.create import create_run
from core.workspace import Workspace
from tests.core.conftest import tiny_recipe

UPDATES = 10  # the fewest of which a tenth may be warm-up
# What is learned: another value gives other weights after ten updates.
WHAT: dict[str, Any] = {
    "method.kind": "full", "method.rank": 8, "method.alpha": 16, "method.dropout": 0.5, "method.targets": ["q_proj"], "method.rslora": True,
    "method.dora": True, "data.sources[].dataset": "other", "data.sources[].groups": ["near"], "data.sources[].weight": 9.0,
    "data.max_length": 64, "data.train_on": "everything", "data.system": "You are kind.", "schedule.effective_batch": 2,
    "schedule.updates": 9, "schedule.epochs": 3.0, "schedule.learning_rate": 1e-3, "schedule.warmup_updates": 1,
    "schedule.warmup_ratio": 0.1, "schedule.shape": "cosine", "schedule.weight_decay": 0.5, "schedule.clip_norm": 0.01, "schedule.seed": 4,
}
# How it is computed, kept and asked: the same weights.
HOW: dict[str, Any] = {
    "title": "x", "data.packing": True, "snapshots.count": 2, "snapshots.spacing": "early", "probes.dataset": "other",
    "probes.max_new_tokens": 4, "device.micro_batch": 1, "device.checkpointing": "on", "device.speed": "plain",
    "early_stop.on_alert": "save", "log.to": "none",
}
# Tried where there is what they need: other models, number formats, GPUs, several processes.
ELSEWHERE = {"model.source", "model.dtype", "model.quantization", "data.sources", "device.kind", "device.gpus", "device.zero",
             "device.offload"}


@pytest.fixture
def base(workspace: Workspace, tiny_model: Path) -> Recipe:
    """Two sources of rows that differ, without probes: nothing is looked at on the way."""
    for name, answer in (("mine", "Alex"), ("other", "Paris")):
        rows = [{"messages": [{"role": "user", "content": f"Question {number} of {group}?"},
                              {"role": "assistant", "content": f"{answer} " * 12}], "group": group, "lang": "en"}
                for group in ("identity", "near") for number in range(6)]
        save_dataset(workspace, name, rows, "test")
    return tiny_recipe(tiny_model, data__sources=[{"dataset": "mine", "groups": ["identity"]}, {"dataset": "mine"}],
                       schedule__updates=UPDATES, snapshots__count=1)


def changed(recipe: Recipe, path: str, value: Any) -> Recipe:
    return change_recipe(recipe, {path.replace("[]", "[0]"): value})


def weights_after(workspace: Workspace, recipe: Recipe) -> tuple[dict[str, Any], list[int]]:
    """The trained tensors of a whole training in this process, and the steps of its snapshots."""
    from safetensors.torch import load_file

    from core.train.worker import train_job

    run = Run(create_run(workspace, recipe).folder)
    train_job(workspace, run, Recorder(run, run.state()))
    saved = run.checkpoints()
    found: dict[str, Any] = {}
    for path in saved[-1].folder.glob("*.safetensors"):
        found |= load_file(path)
    return found, [one.step for one in saved]


def test_every_field_is_tried() -> None:
    assert {field.path for field in fields(Recipe)} == {*WHAT, *HOW} | ELSEWHERE
    for path in (*WHAT, *HOW):
        assert setting_at(Recipe, path).label


@pytest.mark.slow
def test_what_decides_the_training_changes_it_and_nothing_else_does(workspace: Workspace, base: Recipe,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected, _ = weights_after(workspace, base)
    for path, value in HOW.items():
        found, steps = weights_after(workspace, changed(base, path, value))
        assert all(torch.allclose(found[name], tensor, atol=2e-5) for name, tensor in expected.items()), path
        assert steps == ([5, 10] if path == "snapshots.count" else [10])
    for path, value in WHAT.items():
        found, _ = weights_after(workspace, changed(base, path, value))
        is_same = found.keys() == expected.keys() and all(
            found[name].shape == tensor.shape and torch.allclose(found[name], tensor, atol=1e-4) for name, tensor in expected.items())
        assert not is_same, f"{path} changes nothing"
