"""Estimates: memory by part, time, the trial that measures both, and what fits the device for the same training."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.errors import StudioError
from core.jobs.folder import JobState, create_job
from core.jobs.process import ProcessIdentity
from core.jobs.worker import Recorder
from core.machine import Gpu
from core.recipe import Recipe, change_recipe, dump_recipe
from core.recipe.fit import propose_fit
from core.recipe.forecast import forecast
from core.recipe.memory import activation_values, estimate_memory, read_shape
from core.recipe.pace import estimate_seconds, operations_per_token, training_seconds
from core.recipe.trial import active_trial, fingerprint, keep_trial, read_trial, start_trial
from core.train.looks import SHARE
from core.workspace import Workspace, write_text
from tests.core.conftest import save_tiny_dataset, tiny_recipe
from tests.core.test_checks import show_gpus


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, [])


@pytest.fixture
def recipe(workspace: Workspace, tiny_model: Path) -> Recipe:
    save_tiny_dataset(workspace)
    return change_recipe(tiny_recipe(tiny_model), {"model.dtype": "auto"})


def test_memory_by_part_is_arithmetic(recipe: Recipe, tiny_model: Path) -> None:
    shape = read_shape(tiny_model)
    assert (shape.hidden, shape.feed_forward, shape.layers, shape.key_value, shape.vocabulary) == (64, 128, 2, 32, 400)
    linear = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128)
    assert shape.linear_parameters == linear and shape.parameters == linear + 400 * 64 + 64 + 2 * 128
    adapter = 4 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    memory = estimate_memory(tiny_model, recipe, "cpu", 50)
    assert (memory.weights, memory.adapter) == (4 * shape.parameters, 4 * adapter)
    assert (memory.gradients, memory.optimizer) == (4 * adapter, 8 * adapter)
    values = activation_values(shape, 4)
    assert values == 6 * 64 + 2 * 32 + 4 * 128 + 7 * 4
    assert memory.activations == 4 * 50 * 2 * values * 4, "4 rows of 50 tokens, 2 layers, 4 bytes"
    assert memory.logits == 200 * 400 * 12 and memory.total == sum(
        (memory.weights, memory.adapter, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.runtime))
    kept = estimate_memory(tiny_model, change_recipe(recipe, {"device.checkpointing": "on"}), "cpu", 50)
    assert kept.activations == 4 * 50 * (2 * 64 + values) * 4
    one = estimate_memory(tiny_model, change_recipe(recipe, {"device.micro_batch": 1}), "cpu", 50)
    assert one.activations * 4 == memory.activations
    full = estimate_memory(tiny_model, change_recipe(recipe, {"method.kind": "full"}), "cpu", 50)
    assert full.adapter == 0 and full.before_activations == 16 * shape.parameters
    small = estimate_memory(tiny_model, change_recipe(recipe, {"model.quantization": "nf4"}), "cuda:0", 50)
    assert small.weights == round(linear * 0.516 + (shape.parameters - linear) * 4) and small.runtime == 0


def test_gpus_divide_what_their_stage_says(recipe: Recipe, tiny_model: Path) -> None:
    parameters = read_shape(tiny_model).parameters

    def parts(stage: int, offload: str = "none") -> tuple[float, ...]:
        shared = change_recipe(recipe, {"method.kind": "full", "device.gpus": 4, "device.zero": stage, "device.offload": offload})
        memory = estimate_memory(tiny_model, shared, "cuda:0", 50)
        return tuple(round(part / parameters, 2) for part in (memory.weights, memory.gradients, memory.optimizer))

    assert parts(0) == (4, 4, 8) and parts(1) == (2, 4, 3) and parts(2) == (2, 1, 3) and parts(3) == (0.5, 0.5, 3)
    assert parts(3, "all") == (0, 0.5, 0) and parts(2, "optimizer") == (2, 1, 0)


def test_rows_left_open_are_fitted_to_the_memory(recipe: Recipe, tiny_model: Path) -> None:
    wide = change_recipe(recipe, {"schedule.effective_batch": 64})
    whole = estimate_memory(tiny_model, wide, "cuda:0", 100)
    half = estimate_memory(tiny_model, wide, "cuda:0", 100, free=round(whole.total * 0.8))
    assert half.activations * 2 == whole.activations and half.weights == whole.weights


def test_time_follows_the_work(recipe: Recipe, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.recipe.pace.processor_rate", lambda: 1e9)
    shape = read_shape(tiny_model)
    assert operations_per_token(shape, change_recipe(recipe, {"method.kind": "full"})) == 6 * shape.linear_parameters
    again = change_recipe(recipe, {"method.kind": "full", "device.checkpointing": "on"})
    assert operations_per_token(shape, again) == 8 * shape.linear_parameters
    one, two = (training_seconds(tiny_model, recipe, "cpu", tokens, tokens / 2, 50) or 0 for tokens in (1000, 2000))
    assert two == pytest.approx(2 * one) and one > 0
    looking = [estimate_seconds(tiny_model, recipe, "cpu", 1000, 500, 50, looks) or 0 for looks in (0, 1, 2, 99)]
    assert looking[0] > one and looking[1] - looking[0] == pytest.approx(230 * 2 * shape.parameters / (0.33 * 2e9 / 2), rel=0.6)
    assert looking[3] == looking[2] == pytest.approx(looking[0] + SHARE * one), "never more than the watch may spend"
    show_gpus(monkeypatch, [Gpu(index=0, name="NVIDIA H100 80GB HBM3", total_bytes=8e10, free_bytes=8e10)])
    slow = training_seconds(tiny_model, change_recipe(recipe, {"device.micro_batch": 1}), "cuda:0", 10_000, 100, 50) or 0
    fast = training_seconds(tiny_model, recipe, "cuda:0", 10_000, 100, 50) or 0
    assert slow > 3 * fast > 0, "one row at a time starts four times as many kernels"
    show_gpus(monkeypatch, [Gpu(index=0, name="Unheard of", total_bytes=8e10, free_bytes=8e10)])
    assert training_seconds(tiny_model, recipe, "cuda:0", 10_000, 100, 50) is None
    assert estimate_seconds(tiny_model, recipe, "cuda:0", 10_000, 100, 50, 1) is None


def test_an_estimate_takes_milliseconds(workspace: Workspace, recipe: Recipe) -> None:
    forecast(workspace, recipe)
    began = time.perf_counter()
    for _ in range(5):
        forecast(workspace, recipe)
    assert (time.perf_counter() - began) / 5 < 0.1


def test_a_trial_measures_and_is_found_again(workspace: Workspace, recipe: Recipe) -> None:
    from core.train.trial import trial_job

    assert forecast(workspace, recipe).basis == "arithmetic" and read_trial(workspace, recipe) is None
    job = create_job(workspace.jobs / "20260101-120000-trial-x-0001", "trial", {"fingerprint": fingerprint(workspace, recipe)})
    write_text(job.folder / "recipe.yaml", dump_recipe(recipe))
    trial_job(workspace, job, Recorder(job, job.state()))
    known = forecast(workspace, recipe)
    measured = read_trial(workspace, recipe)
    assert measured and known.basis == "trial" and known.measured_on == job.id and known.memory_bytes == measured.memory_bytes > 10**8
    assert measured.tokens > 0 and measured.seconds_per_token > 0 and measured.look_seconds > 0 and measured.startup_seconds > 0
    assert known.seconds == pytest.approx(measured.seconds(known.tokens or 0, known.plan)) and known.seconds > 0
    assert not (job.folder / "tries").exists(), "what the trial wrote is gone"
    longer = change_recipe(recipe, {"schedule.updates": 600, "schedule.learning_rate": 1e-4, "schedule.seed": 9})
    assert forecast(workspace, longer).basis == "trial" and (forecast(workspace, longer).seconds or 0) > (known.seconds or 0)
    for change in ({"method.rank": 8}, {"schedule.effective_batch": 8}, {"data.max_length": 64}, {"device.checkpointing": "on"}):
        assert forecast(workspace, change_recipe(recipe, change)).basis == "arithmetic", change


def test_a_trial_is_started_once(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.recipe.trial.start_job", lambda job: job.write_state(
        JobState(kind="trial", state="running", created=1.0, process=ProcessIdentity.own())))
    job = start_trial(workspace, recipe)
    assert start_trial(workspace, recipe).id == job.id and active_trial(workspace, recipe) == job
    assert start_trial(workspace, change_recipe(recipe, {"method.rank": 8})).id != job.id
    with pytest.raises(StudioError, match="this training has none"):
        start_trial(workspace, change_recipe(recipe, {"device.gpus": [0, 1]}))


def memory_of(monkeypatch: pytest.MonkeyPatch, size: float, name: str = "NVIDIA H100") -> None:
    show_gpus(monkeypatch, [Gpu(index=0, name=name, total_bytes=int(size), free_bytes=int(size))])


def test_fit_keeps_the_effective_batch(workspace: Workspace, recipe: Recipe, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_of(monkeypatch, 8e10)
    small = change_recipe(recipe, {"device.kind": "auto", "device.micro_batch": 1, "device.checkpointing": "on",
                                   "schedule.effective_batch": 16})
    found = propose_fit(workspace, small)
    assert found.changes == {"device.micro_batch": 16, "device.checkpointing": "off"} and found.is_worth_it
    assert found.gain and found.gain > 4, "sixteen times fewer starts"
    changed = change_recipe(small, found.changes)
    assert changed.schedule == small.schedule and changed.data == small.data and changed.method == small.method
    assert "another training" in str(found.notes[0]) and "updates instead of 6" in str(found.notes[0])
    assert propose_fit(workspace, change_recipe(recipe, {"device.kind": "auto"})).changes == {}
    needed = estimate_memory(tiny_model, changed, "cuda:0", forecast(workspace, changed).longest_tokens or 0)
    memory_of(monkeypatch, needed.total)
    tight = propose_fit(workspace, change_recipe(changed, {"device.micro_batch": 16}))
    assert tight.changes["device.micro_batch"] < 16 and tight.rows * tight.accumulated >= 16 and tight.gain is None
    memory_of(monkeypatch, 1e5)
    none = propose_fit(workspace, small)
    assert none.changes == {} and "Nothing fits" in str(none.notes[0]) and "nf4" in str(none.notes[1])


def test_fit_believes_a_trial(workspace: Workspace, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.recipe.trial import Measured

    memory_of(monkeypatch, 8e10)
    wide = change_recipe(recipe, {"device.kind": "auto", "schedule.effective_batch": 64, "device.micro_batch": 64})
    before = propose_fit(workspace, wide)
    counted = forecast(workspace, wide).memory
    assert before.changes == {} and counted
    keep_trial(workspace, wide, Measured(10 * counted.total, 1e-3, 1, 1, 1, 1, 100, "x"))
    memory_of(monkeypatch, 5 * counted.total)
    keep_trial(workspace, wide, Measured(10 * counted.total, 1e-3, 1, 1, 1, 1, 100, "x"))
    assert propose_fit(workspace, wide).changes["device.micro_batch"] < 64
