"""Trackers get the numbers through transformers' integrations, and whatever they do, the training goes on."""

from __future__ import annotations

import time
import types
from importlib.util import find_spec

import pytest

from core.train.create import create_run
from core.train.track import Tracker
from tests.core.conftest import save_tiny_dataset, tiny_recipe

RECORDS = [{"update": update, "loss": 2.0 / update, "learning_rate": 1e-4, "gradient_norm": 1.0, "tokens_per_second": 9.0,
            "memory_bytes": 5, "time": 0.0} for update in (1, 2, 3)]


@pytest.fixture
def run(workspace, tiny_model):
    save_tiny_dataset(workspace)
    return create_run(workspace, tiny_recipe(tiny_model), "tracked")


def recipe_for(tiny_model, tracker: str):
    return tiny_recipe(tiny_model).model_copy(update={"log": types.SimpleNamespace(to=tracker)})


def install(monkeypatch, name: str, callback: type) -> None:
    """Put a callback where transformers keeps the one of this tracker."""
    import transformers.integrations.integration_utils as integrations

    monkeypatch.setitem(integrations.INTEGRATION_TO_CALLBACK, name, callback)


def test_a_tracker_gets_every_update_with_its_number(run, tiny_model, monkeypatch):
    from transformers import TrainerCallback

    said: list = []

    class Listening(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            said.append(("begin", args.run_name))

        def on_log(self, args, state, control, logs=None, model=None, **_):
            said.append((state.global_step, logs["loss"], logs["learning_rate"], "time" in logs))

        def on_train_end(self, args, state, control, **_):
            said.append("end")

    install(monkeypatch, "wandb", Listening)
    tracker = Tracker(run, recipe_for(tiny_model, "wandb"))
    for record in RECORDS:
        tracker.log(record)
    tracker.close()
    assert said == [("begin", run.id), (1, 2.0, 1e-4, False), (2, 1.0, 1e-4, False), (3, 2 / 3, 1e-4, False), "end"]
    assert not [event for event in run.events() if event["event"] == "tracker_failed"]


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)])
def test_a_tracker_that_fails_is_noted_and_left_behind(run, tiny_model, monkeypatch, error):
    from transformers import TrainerCallback

    class Failing(TrainerCallback):
        def on_log(self, *_, **__):
            raise error

    install(monkeypatch, "mlflow", Failing)
    tracker = Tracker(run, recipe_for(tiny_model, "mlflow"))
    for record in RECORDS:
        tracker.log(record)
    tracker.close()
    failed = [event for event in run.events() if event["event"] == "tracker_failed"]
    assert len(failed) == 1 and failed[0]["tracker"] == "mlflow" and type(error).__name__ in failed[0]["reason"]


def test_a_tracker_that_hangs_keeps_nobody_waiting(run, tiny_model, monkeypatch):
    from transformers import TrainerCallback

    class Hanging(TrainerCallback):
        def on_log(self, *_, **__):
            time.sleep(60)

    install(monkeypatch, "trackio", Hanging)
    monkeypatch.setattr("core.train.track._CLOSE_SECONDS", 0.2)
    monkeypatch.setattr("core.train.track._MOST_WAITING", 10)
    tracker = Tracker(run, recipe_for(tiny_model, "trackio"))
    began = time.monotonic()
    for record in RECORDS * 200:
        tracker.log(record)
    assert time.monotonic() - began < 0.2
    tracker.close()
    assert time.monotonic() - began < 2


def test_a_tracker_that_is_not_installed_is_noted(run, tiny_model):
    assert find_spec("trackio") is None
    tracker = Tracker(run, recipe_for(tiny_model, "trackio"))
    tracker.log(RECORDS[0])
    tracker.close()
    failed = [event for event in run.events() if event["event"] == "tracker_failed"]
    assert [event["tracker"] for event in failed] == ["trackio"] and "trackio" in failed[0]["reason"]
