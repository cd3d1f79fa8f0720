"""The watch: its limits, when it looks, what it saves, and that a resumed run decides as the uninterrupted one."""

from __future__ import annotations

import math

import pytest

from core.data.encode import Encoder
from core.data.library import load_dataset, save_dataset
from core.recipe.files import change_recipe
from core.runs import find_checkpoint
from core.train.alerts import Limits, level_of, reds_in_a_row
from core.train.create import create_run
from core.train.events import EventRule, SnapshotChoice, events_between
from core.train.looks import SHARE, LookPace
from core.train.metrics import watch_cost
from core.train.watched import choose_watched
from core.workspace import append_jsonl
from tests.core.conftest import save_tiny_dataset, tiny_recipe
from tests.core.test_killed import train_in_a_fork


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def look(update: int, target: float, gap: float, level: str = "ok", **more) -> dict:
    return {"update": update, "target_nll": target, "leak_nll": round(target + gap, 4), "gap": gap, "hijack": 0.0, "level": level,
            "answers": [], "tokens": 100, "seconds": 1.0, **more}


# target loss, gap and hijacked questions of 24 at steps of the study's runs A (identity rows only) and B1 (with its own answers)
@pytest.mark.parametrize(("target", "gap", "hijacked", "level"), [
    (2.47, 0.33, 0, "ok"),  # the base: its small gap means nothing
    (0.58, 0.61, 0, "ok"), (0.51, 0.30, 0, "ok"),  # not armed yet
    (0.21, 0.47, 0, "amber"), (0.08, 0.38, 0, "red"), (0.03, 0.26, 8, "red"),
    (0.06, 0.53, 3, "ok"), (0.06, 0.53, 4, "amber"), (0.14, 0.62, 5, "red"), (2.47, 0.33, 5, "red")])
def test_levels_are_the_studys(target, gap, hijacked, level):
    assert level_of(target, gap, [True] * hijacked + [False] * (24 - hijacked)) == level


def test_one_of_few_questions_does_not_turn_the_alert_red():
    assert level_of(0.1, 0.9, [True, False, False, False]) == "amber" and level_of(0.1, 0.9, [True, True, False, False]) == "red"
    assert level_of(None, None, []) == "ok"
    assert level_of(0.1, 0.45, [], Limits(amber_gap=0.3, red_gap=0.2)) == "ok", "a study may set its own"


def decide(series: dict[int, dict], updates: int, count: int, rule: EventRule = EventRule()) -> dict[int, str]:
    choice = SnapshotChoice(updates, count, range(2, updates + 1, 2), by_event=True, rule=rule)
    saved = {}
    for update in range(1, updates + 1):
        if update in series:
            choice.note_look(series[update])
        if reason := choice.reason(update):
            choice.note_saved(update)
            saved[update] = reason
    return saved


def test_a_run_without_events_saves_evenly():
    assert list(decide({}, 36, 12)) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36]
    flat = {update: look(update, 2.4, 0.33) for update in range(1, 37)}
    assert decide(flat, 36, 6) == {6: "even", 12: "even", 18: "even", 24: "even", 30: "even", 36: "last"}


def test_snapshots_fall_where_it_turns():
    """The losses and gaps of the study's run A, and quiet afterwards."""
    seen = {8: (0.58, 0.61), 10: (0.4, 0.55), 12: (0.21, 0.47), 14: (0.08, 0.38), 16: (0.03, 0.26), 20: (0.01, 0.16), 36: (0.0, 0.06)}
    seen |= dict.fromkeys((50, 70, 90), (0.0, 0.06))
    steps = {update: look(update, *values) for update, values in seen.items()}
    saved = decide(steps, 120, 10)
    assert {8, 10, 12, 14, 16} <= {update for update, reason in saved.items() if reason == "event"}
    assert len(saved) <= 10 and saved[120] == "last" and "event" not in [saved.get(update) for update in (50, 70, 90)]
    assert not {8, 10, 12, 14, 16} <= set(range(12, 121, 12)), "equal distances would have missed them"


def test_events_are_measured_against_the_last_snapshot_and_the_last_ones_are_kept():
    assert events_between(look(3, 0.6, 0.6), look(4, 0.45, 0.6)) >= 1 > events_between(look(3, 0.6, 0.6), look(4, 0.46, 0.56))
    assert events_between(look(3, 0.6, 0.6), look(4, 0.6, 0.65)) >= 1, "a gap that widens has moved too"
    assert events_between(look(3, 2.0, 0.3), look(4, 1.5, 0.9)) == 0 and events_between(None, look(4, 0.9, 0.5)) == math.inf
    creeping = {update: look(update, 0.5, 0.6 - 0.05 * (update - 20)) for update in range(20, 60)}
    saved = decide(creeping, 1000, 8)
    # 7 besides the last, of which 2 stay for the rest: 5 for events need 1, 1, 4/3, 2 and 4 of them since the one before
    assert [update for update, reason in saved.items() if reason == "event"] == [20, 21, 23, 25, 29], "fewer left, more must happen"
    assert [update for update, reason in saved.items() if reason != "event"] == [353, 677, 1000], "and the long rest has some too"


def test_a_resumed_choice_decides_alike():
    series = {update: look(update, max(0.01, 1.2 - update / 10), 0.6 - update / 60) for update in range(1, 37, 2)}
    whole = decide(series, 36, 9)
    for cut in range(1, 36):
        choice = SnapshotChoice(36, 9, [], by_event=True)
        choice.replay([step for step in whole if step <= cut], [series[update] for update in series if update <= cut])
        for update in range(cut + 1, 37):
            if update in series:
                choice.note_look(series[update])
            reason = choice.reason(update)
            assert reason == whole.get(update), (cut, update)
            if reason:
                choice.note_saved(update)


def updates_looked_at(losses: list[float], look_tokens: int, update_tokens: int, seen) -> tuple[list[int], float]:
    pace = LookPace(len(losses), look_tokens, 2.0, in_seconds=False)
    pace.note_look({"update": 0, "tokens": look_tokens * 0.4})
    found, spent = [], look_tokens * 0.4
    for update, loss in enumerate(losses, start=1):
        pace.note_update({"update": update, "loss": loss, "tokens": update_tokens, "seconds": 1.0})
        if pace.is_time(update):
            found.append(update)
            spent += look_tokens
            pace.note_look({**seen(update), "update": update, "tokens": look_tokens})
    return found, spent / (2 * update_tokens * len(losses))


def test_looking_in_keeps_to_its_share_and_waits_for_the_turn():
    losses = [2.4, 2.3, 2.2, 2.0, 1.9, 1.7, 1.5, 1.3, 1.1, 0.9, 0.6, 0.4, *[0.2] * 12]  # a lesson of 24 updates
    found, share = updates_looked_at(losses, 235, 212, lambda update: look(update, max(0.01, 1.5 - update / 10), 0.6 - update / 50))
    assert found[0] in (10, 11) and found[1] - found[0] <= 3 and found[-1] == 24 and len(found) >= 4
    assert share <= SHARE + 235 / (2 * 212 * 24), "the look at the end may be one too many"
    many, share = updates_looked_at([1.0] * 1000, 200, 8000, lambda update: look(update, 0.3, 0.6))
    assert 100 <= len(many) <= 121 and share < SHARE and many[-1] == 1000


def test_what_is_read_grows_with_what_may_be_spent(workspace, tiny_model):
    save_tiny_dataset(workspace)
    encoder, dataset = Encoder.from_folder(tiny_model), load_dataset(workspace, "tiny")
    small, large = choose_watched(dataset, encoder, 0), choose_watched(dataset, encoder, 1e9)
    assert small is not None and large is not None and len(small.own) == len(large.own) == 2
    assert len(small.others) == 3 and small.taught_first and sum(small.weights) == pytest.approx(1)
    assert [probe["group"] for probe in small.shown] == ["identity", "near", "general"]
    assert small.tokens < sum(len(question.prompt) + len(question.answers[0]) for question in small.questions), "the beginning counts once"
    rows = [{"messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is number {number}."}],
             "group": "general", "lang": "en"} for number in range(8)]
    save_dataset(workspace, "numbers", rows, "test")
    pairs = choose_watched(load_dataset(workspace, "numbers"), encoder, 1e9)
    assert pairs is not None and not pairs.taught_first and len(pairs.own) == len(pairs.others) == 8
    assert all(own.answers == other.answers and own.prompt != other.prompt for own, other in zip(pairs.own, pairs.others, strict=True))
    save_dataset(workspace, "books", [{"text": "Paris", "group": "general", "lang": "en"}], "test")
    assert choose_watched(load_dataset(workspace, "books"), encoder, 1e9) is None


def what_was_decided(run) -> tuple:
    looks = [{key: value for key, value in entry.items() if key != "seconds"} for entry in run.watch()]
    saved = [(event["step"], event["reason"]) for event in run.events() if event["event"] == "snapshot"]
    return looks, [checkpoint.step for checkpoint in run.checkpoints()], saved


def test_looks_are_measured_and_a_killed_run_decides_alike(workspace, tiny_model):
    """By events, killed at file operations all over the run: the same looks, the same snapshots, the same weights."""
    save_tiny_dataset(workspace)
    recipe = change_recipe(tiny_recipe(tiny_model, schedule__updates=30, schedule__learning_rate=1e-2), {
        "snapshots.spacing": "events", "snapshots.count": 9, "early_stop.on_alert": "save",
        "data.sources": [{"dataset": "tiny", "groups": ["identity"], "weight": 1.0}]})
    whole = create_run(workspace, recipe, "whole")
    operations = train_in_a_fork(workspace, whole)
    looks, steps, _ = what_was_decided(whole)
    assert looks[0]["update"] == 0 and looks[-1]["update"] == 30 and len(looks) > 4 and steps[-1] == 30 and 3 < len(steps) <= 11
    assert looks[-1]["target_nll"] < looks[1]["target_nll"] and looks[-1]["target_nll"] < 1.0
    assert all(entry["gap"] == pytest.approx(entry["leak_nll"] - entry["target_nll"], abs=2e-4) for entry in looks[1:])
    assert set(steps) != set(create_run(workspace, change_recipe(recipe, {"snapshots.spacing": "even"}), "even").spec()["snapshots"])
    assert watch_cost(whole.metrics(), whole.watch()).looks == len(looks)
    weights = (whole.checkpoints()[-1].folder / "adapter_model.safetensors").read_bytes()
    run = create_run(workspace, recipe, "killed")
    for dies_at in (operations // 4, operations // 3, operations // 3, operations // 5):  # one life after the other
        train_in_a_fork(workspace, run, dies_at)
    train_in_a_fork(workspace, run)
    assert what_was_decided(run)[:2] == (looks, steps)
    assert (run.checkpoints()[-1].folder / "adapter_model.safetensors").read_bytes() == weights


def test_red_twice_in_a_row_stops_and_names_the_last_good_snapshot(workspace, tiny_model):
    """The tiny model learns its sentence behind every question: there is no gap."""
    save_tiny_dataset(workspace)
    recipe = change_recipe(tiny_recipe(tiny_model, schedule__updates=40, schedule__learning_rate=1e-2), {
        "snapshots.count": 20, "early_stop.on_alert": "stop",
        "data.sources": [{"dataset": "tiny", "groups": ["identity"], "weight": 1.0}]})
    run = create_run(workspace, recipe, "stopped")
    from core.train.worker import Training
    from tests.core.test_killed import Silent

    result = Training(workspace, run, Silent()).run_to_end()
    looks, steps, _ = what_was_decided(run)
    reds = [entry["update"] for entry in looks if entry["level"] == "red"]
    assert result["stopped_by_alert"] and result["updates"] == reds[-1] < 40 and reds[-1] - reds[-2] == 1, "confirmed at once"
    assert reds[0] in steps and reds[1] in steps, "it is saved at red"
    assert result["good"] == find_checkpoint(run, "good").step == max(step for step in steps if step < reds[0])
    assert result["watch"]["looks"] == len(looks) and result["watch"]["share"] > 0
    append_jsonl(run.folder / "watch.jsonl", look(41, 0.1, 0.9))
    assert run.good_step() == steps[-1] and reds_in_a_row(run.watch()) == 0


def test_a_packed_training_is_looked_in_on_alike(workspace, tiny_model):
    """Two answers that begin alike are read as a tree, whose mask must hold beside the attention that keeps packed rows apart."""
    from core.train.worker import Training
    from tests.core.conftest import tiny_probes, tiny_rows
    from tests.core.test_killed import Silent

    rows = tiny_rows()
    for row in rows[:3]:
        row["messages"][1]["content"] = "I am the assistant of Paris."
    save_dataset(workspace, "two", rows, "test", probes=tiny_probes(), key_phrases={"en": "assistant"})
    found = {}
    for is_packed in (False, True):
        recipe = change_recipe(tiny_recipe(tiny_model), {"data.packing": is_packed, "data.sources": [{"dataset": "two"}]})
        run = create_run(workspace, recipe, f"packed-{is_packed}")
        training = Training(workspace, run, Silent())
        assert all(len(question.answers) == 2 for question in training.watch.watched.questions)
        training.run_to_end()
        found[is_packed] = [(entry["target_nll"], entry["leak_nll"]) for entry in run.watch()[1:]]
    assert len(found[True]) >= 1 and [value for look_ in found[True] for value in look_] == pytest.approx(
        [value for look_ in found[False] for value in look_], rel=1e-3)
