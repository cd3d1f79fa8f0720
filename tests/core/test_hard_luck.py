"""What a training does when numbers or memory give out, and what writing it down costs. Most of it shows on a GPU only, and is
brought about here."""

from __future__ import annotations

import math
import statistics
import time

import pytest
import torch

from core.errors import StudioError
from core.jobs.worker import Recorder
from core.runs import Run
from core.train import packed
from core.train.create import create_run
from core.train.fit import is_out_of_memory
from core.train.model import make_step, prepare_model, refuse_impossible
from core.train.update import language_model
from core.train.worker import Training
from core.workspace import read_json
from tests.core.conftest import save_tiny_dataset, tiny_recipe


@pytest.fixture
def training(workspace, tiny_model, monkeypatch) -> Training:
    """Six updates of the tiny model, each of which is saved."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model, snapshots__count=6), "luckless")
    return Training(workspace, run, Recorder(run, run.state()))


def events(run: Run, name: str) -> list[dict]:
    return [event for event in run.events() if event["event"] == name]


def at_update(number: int, broken, whole):
    """`whole` until its call `number`, which is `broken`'s."""
    calls = 0

    def call(*args):
        nonlocal calls
        calls += 1
        return broken(*args) if calls == number else whole(*args)
    return call


def test_the_snapshot_whose_weights_gave_no_number_is_not_called_good(training):
    training.accumulator.run = at_update(4, lambda *_: math.nan, training.accumulator.run)
    with pytest.raises(StudioError, match="At update 4 the loss .*; the last good checkpoint is 2"):
        training.run_to_end()
    assert [saved.step for saved in training.run.checkpoints()] == [1, 2, 3], "3 was saved, and gave the loss"


def test_a_gradient_that_is_no_number_leaves_the_newest_snapshot_good(training):
    training.step.apply = at_update(4, lambda *_: math.inf, training.step.apply)
    with pytest.raises(StudioError, match="At update 4 .*; the last good checkpoint is 3"):
        training.run_to_end()


def test_an_optimizer_that_does_not_fit_is_no_matter_of_rows(training):
    def apply(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    training.step.apply = apply
    with pytest.raises(StudioError, match="The optimizer's state does not fit into the main memory") as caught:
        training.run_to_end()
    assert all(way in str(caught.value.hint) for way in ("method.kind: lora", "device.zero: 2", "smaller model"))


def test_a_look_that_does_not_fit_is_left_out_and_the_training_goes_on(training):
    def read(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    modes = []
    whole = training.accumulator.run
    training.accumulator.run = lambda *args: (modes.append(training.model.training), whole(*args))[1]
    training.watch.reader.read = read
    assert training.run_to_end()["updates"] == 6 and modes == [True] * 6
    assert len(events(training.run, "no_more_looks")) == 1 and [saved.step for saved in training.run.checkpoints()] == [1, 2, 3, 4, 5, 6]


def test_a_look_that_fails_otherwise_is_not_hidden(training):
    def read(*_):
        raise RuntimeError("shapes differ")

    training.watch.reader.read = read
    with pytest.raises(RuntimeError, match="shapes differ"):
        training.run_to_end()


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory", "cuDNN error: "
                                  "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory"])
def test_libraries_say_in_many_ways_that_memory_is_short(said):
    assert is_out_of_memory(RuntimeError(said)) and not is_out_of_memory(RuntimeError("shapes differ"))


def test_packing_is_judged_by_the_format_that_is_computed_in(workspace, tiny_model):
    """Weights trained in float32 and computed with in bfloat16 round as bfloat16 does, which is no row that sees another."""
    save_tiny_dataset(workspace)
    recipe = tiny_recipe(tiny_model, method__kind="full", model__dtype="bfloat16", data__packing=True)
    model = prepare_model(recipe, tiny_model, "cpu")
    inner = language_model(model)
    assert next(inner.parameters()).dtype == torch.float32

    def round_otherwise(module, inputs, output):
        """As another kernel would, by a hundredth."""
        return output if packed._bounds is None else output * (1 + 0.01 * torch.randn_like(output))
    inner.model.norm.register_forward_hook(round_otherwise)
    sample = list(range(5, 25))
    assert not packed.rows_stay_apart(inner, sample), "too much for float32"
    assert make_step(recipe, model, sample, "cpu")[1]
    inner.model.norm.register_forward_hook(lambda module, inputs, output: output + 0.2 * torch.cumsum(output, dim=1))
    assert not packed.rows_stay_apart(inner, sample, torch.bfloat16), "another row that is seen is found in bfloat16 too"


def test_float16_is_refused_where_its_gradients_could_not_be_scaled(tiny_model):
    refuse_impossible(tiny_recipe(tiny_model, model__dtype="float16"))
    with pytest.raises(StudioError, match="float16 would lose small gradients"):
        refuse_impossible(tiny_recipe(tiny_model, model__dtype="float16", device__zero=1))


def test_recording_takes_less_than_a_hundredth_of_the_shortest_update(workspace, tiny_model, monkeypatch):
    """The shortest is the course's on an H100, 0.25 s (docs/speed.md). Counted in the processor's time: other programs shall not decide."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("core.jobs.worker.PROGRESS_SECONDS", 0.0)  # the state is written at every update, as when one takes so long
    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model, schedule__updates=25, snapshots__count=1, log__to="wandb"), "recorded")
    training = Training(workspace, run, Recorder(run, run.state()))
    spent: dict[str, list[float]] = {}

    def timed(name: str, work):
        def call(*args):
            began = time.thread_time()
            result = work(*args)
            spent.setdefault(name, []).append(time.thread_time() - began)
            return result
        return call

    training._record = timed("record", training._record)
    training.recorder.progress = timed("progress", training.recorder.progress)
    training.recorder.stop_requested = timed("stop", training.recorder.stop_requested)
    training.run_to_end()
    assert {name: len(times) for name, times in spent.items()} == {"record": 25, "progress": 25, "stop": 25}
    assert read_json(run.folder / "state.json")["progress"]["done"] == 25
    assert sum(map(statistics.median, spent.values())) < 0.01 * 0.25
