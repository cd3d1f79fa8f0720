"""What the Train page reads while a training writes: whole records only, what is new only, few points, no lost spike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.figures.training import training_figure
from core.jobs.folder import create_job
from core.runs import Run
from core.train.metrics import POINTS_PER_LINE, GrowingRecords, answer_history, find_alert, read_snapshots, series, smooth, thin
from core.workspace import Workspace, append_jsonl, write_jsonl

LABELS = {key: key for key in ("loss", "loss_raw", "learning_rate", "tokens_per_second", "memory_bytes", "snapshot", "amber", "red",
                                  "target_nll", "leak_nll")}
LABELS["update"] = "update %{x}"


def record(update: int, loss: float = 1.0) -> dict:
    return {"update": update, "loss": loss, "learning_rate": 1e-4, "tokens_per_second": 80.0, "memory_bytes": 1.5e9}


def updates(reader: GrowingRecords) -> list[int]:
    return [entry["update"] for entry in reader.read()]


def test_a_file_that_grows_is_read_on_from_where_the_last_look_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = GrowingRecords(path)
    assert reader.read() == []
    append_jsonl(path, record(1))
    assert updates(reader) == [1]
    for update in range(2, 30):
        append_jsonl(path, record(update))
        assert updates(reader)[-1] == update
    assert updates(reader) == list(range(1, 30))


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(record(2)).encode() + b"\n"
    append_jsonl(path, record(1))
    with path.open("ab") as stream:
        stream.write(line[:20])
    reader = GrowingRecords(path)
    assert updates(reader) == [1]
    with path.open("ab") as stream:
        stream.write(line[20:])
    assert updates(reader) == [1, 2]


def test_what_a_killed_writer_left_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"update": 1, "lo\n[1, 2]\n"x"\n{"loss": 3}\n' + json.dumps(record(2)).encode() + b"\n")
    assert updates(GrowingRecords(path)) == [2]


def test_a_resumed_training_rewrites_its_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = GrowingRecords(path)
    write_jsonl(path, [record(update) for update in range(1, 21)])
    assert len(reader.read()) == 20
    write_jsonl(path, [record(update) for update in range(1, 11)])
    assert updates(reader) == list(range(1, 11))
    # As long as before, and other all the same.
    write_jsonl(path, [record(update, 2.0) for update in range(1, 11)])
    assert [entry["loss"] for entry in reader.read()] == [2.0] * 10
    path.unlink()
    assert reader.read() == []


def test_of_two_records_of_one_update_the_later_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [record(1), record(2), record(3), record(2, 9.0), record(4)])
    read = GrowingRecords(path).read()
    assert [(entry["update"], entry["loss"]) for entry in read] == [(1, 1.0), (2, 9.0), (3, 1.0), (4, 1.0)]


def test_series_leaves_out_what_was_not_measured() -> None:
    assert series([record(1), {"update": 2}, {"update": 3, "loss": None}], "loss") == ([1], [1.0])


def test_smoothing_begins_at_the_first_value_and_averages() -> None:
    assert smooth([3.0, 1.0, 2.0], 0) == [3.0, 1.0, 2.0]
    assert smooth([3.0] * 5, 0.9) == pytest.approx([3.0] * 5)
    smoothed = smooth([3.0, 1.0], 0.5)
    assert smoothed == pytest.approx([3.0, (0.25 * 3 + 0.5 * 1) / 0.75])
    assert smooth([], 0.5) == []


def test_thinning_keeps_every_spike_and_both_ends() -> None:
    x = list(range(20_000))
    y = [1.0] * 20_000
    y[7_777], y[12_345] = 50.0, -50.0
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= POINTS_PER_LINE
    assert thin_x == sorted(thin_x)
    assert (thin_x[0], thin_x[-1]) == (0, 19_999)
    assert {50.0, -50.0} <= set(thin_y)
    assert thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def look(update: int, level: str, hijack: float, **answers: str) -> dict:
    return {"update": update, "level": level, "hijack": hijack,
            "answers": [{"question": question, "group": "near", "answer": answer} for question, answer in answers.items()]}


def test_the_alert_names_when_it_began_and_when_it_was_worst() -> None:
    assert find_alert([]) is None
    assert find_alert([look(3, "ok", 0.0)]) is None
    looks = [look(3, "ok", 0.0), look(6, "amber", 0.1), look(9, "red", 0.2), look(12, "red", 0.9)]
    alert = find_alert(looks)
    assert alert is not None
    assert (alert.level, alert.since, alert.update, alert.hijack) == ("red", 6, 9, 0.2)
    amber = find_alert(looks[:2])
    assert amber is not None
    assert (amber.level, amber.since, amber.update) == ("amber", 6, 6)


def test_an_answer_is_listed_when_it_became_another() -> None:
    history = answer_history([look(3, "ok", 0, a="x", b="y"), look(6, "ok", 0, a="x", b="z"), look(9, "ok", 0, a="w", b="z")])
    assert [(entry["question"], entry["answers"]) for entry in history] == [("a", [(3, "x"), (9, "w")]), ("b", [(3, "y"), (6, "z")])]


def test_snapshots_are_those_on_the_disk(workspace: Workspace) -> None:
    run = Run(create_job(workspace.runs / "r", "train", {"updates": 9}).folder)
    for step in (3, 6):
        folder = run.folder / "checkpoints" / f"{step:06d}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"12345")
    run.event("snapshot", step=3, loss=0.5, folder="000003")
    run.event("snapshot", step=9, loss=0.1, folder="000009")  # deleted since
    found = read_snapshots(run)
    assert [(entry["step"], entry["loss"], entry["size_bytes"]) for entry in found] == [(3, 0.5, 5), (6, None, 5)]


def test_the_figure_has_four_panels_and_few_points() -> None:
    records = [record(update, 1 / update) for update in range(1, 5001)]
    figure = training_figure(records, LABELS, smoothing=0.6, snapshots=[100, 5000], planned=6000,
                             looks=[{"update": 100, "level": "ok"}, {"update": 200, "level": "amber", "target_nll": 0.3, "leak_nll": 0.7},
                                    {"update": 300, "level": "red", "target_nll": 0.1, "leak_nll": 0.2}])
    assert {trace.xaxis or "x" for trace in figure.data} == {"x", "x2", "x3", "x4"}
    assert max(len(trace.x) for trace in figure.data) <= POINTS_PER_LINE
    named = {trace.name: trace for trace in figure.data}
    assert list(named["snapshot"].x) == [100, 5000]
    assert (list(named["amber"].x), list(named["red"].x)) == ([200], [300])
    gaps = [leak - target for leak, target in zip(named["leak_nll"].y, named["target_nll"].y, strict=True)]
    assert gaps == pytest.approx([0.4, 0.1]) and list(named["leak_nll"].x) == [200, 300], "a look without losses has no point"
    assert named["amber"].marker.symbol != named["red"].marker.symbol, "colour alone does not tell"
    assert max(named["memory_bytes"].y) == pytest.approx(1.5), "gigabytes"
    assert figure.layout.xaxis.range[1] >= 6000
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_a_zoomed_figure_shows_the_chosen_updates() -> None:
    figure = training_figure([record(1), record(2)], LABELS, shown=(1.0, 1.5))
    assert list(figure.layout.xaxis.range) == [1.0, 1.5]
    assert len(training_figure([], LABELS).data) > 0, "an empty run draws empty panels"
