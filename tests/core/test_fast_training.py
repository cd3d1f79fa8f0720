"""A whole training through the fast path, in plain torch on a processor: same losses, same answers, same checkpoints as the plain one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from core.jobs.worker import Recorder
from core.runs import Run
from core.train import model as making
from core.train.create import create_run
from core.train.fast.choose import FastPlan
from core.train.fast.model import FastModel
from core.train.worker import Training
from tests.core.conftest import losses_of, save_tiny_dataset, tiny_recipe


def train(workspace, recipe, name: str) -> Run:
    run = create_run(workspace, recipe, name)
    Training(workspace, run, Recorder(run, run.state())).run_to_end()
    return run


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_on_the_fast_path_is_the_same_training(workspace, tiny_model, monkeypatch, recompute) -> None:
    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, device__micro_batch=2)
    plain = train(workspace, recipe, "plain")
    monkeypatch.setattr(making, "plan_fast", lambda *args: FastPlan("exact", recompute))
    monkeypatch.setattr(making, "FastModel", partial(FastModel, dtype=torch.float32))
    fast = train(workspace, recipe, "fast")

    assert losses_of(plain)[-1] < losses_of(plain)[0], "it must learn for the comparison to say anything"
    assert losses_of(fast) == pytest.approx(losses_of(plain), rel=1e-4)
    watched = [[(look["update"], look["level"], look["answers"], look["hijack"]) for look in run.watch()] for run in (plain, fast)]
    assert len(watched[0]) > 1 and watched[0] == watched[1]
    read = [[look[key] for look in run.watch()[1:] for key in ("target_nll", "leak_nll")] for run in (plain, fast)]
    assert read[0] == pytest.approx(read[1], rel=1e-3), "the watch must read the model as trained, not the base"
    for mine, theirs in zip(fast.checkpoints(), plain.checkpoints(), strict=True):
        saved, wanted = (load_file(checkpoint.folder / "adapter_model.safetensors") for checkpoint in (mine, theirs))
        assert saved.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.allclose(saved[name], value, atol=1e-4), (mine.step, name)
