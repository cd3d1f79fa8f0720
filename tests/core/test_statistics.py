"""What a dataset is made of, counted by the encoder that trains it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.encode import Encoder
from core.data.library import Dataset, save_dataset
from core.data.measure import measure_dataset, measure_rows
from core.data.statistics import Bar, histogram, packing, packs_of, statistics
from core.workspace import Workspace


@pytest.fixture
def dataset(workspace: Workspace) -> Dataset:
    def row(question: str, answer: str, group: str = "general", lang: str = "en") -> dict:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "group": group, "lang": lang}

    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    rows = [row("Who?", "I am Alex.", "identity"), row("谁？", "我是小助手。", "identity", "zh"), row("a", "word " * 60),
            {"text": "Once upon a time. " * 30, "group": "general", "lang": "en"},
            {**row("b", "c"), "rejected": [{"role": "assistant", "content": "d"}]},
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]},
                          {"role": "tool", "content": "y"}, {"role": "assistant", "content": "z"}], "group": "general", "lang": "en"}]
    return save_dataset(workspace, "mine", rows, "test")


def test_kinds_turns_and_shares(dataset: Dataset, tiny_model: Path) -> None:
    encoder = Encoder.from_folder(tiny_model)
    found = statistics(dataset, encoder)
    assert found.rows == found.looked_at == 6
    assert found.kinds == {"conversations": 4, "documents": 1, "pairs": 1, "with tools": 1} and found.turns == {2: 4, 3: 1}
    assert [(share.name, share.rows) for share in found.languages] == [("en", 5), ("zh", 1)]
    assert [(share.name, share.rows, share.row_share) for share in found.groups] == [("general", 4, 66.7), ("identity", 2, 33.3)]
    lengths = [len(encoder.encode_row(row).ids) for row in dataset.rows()]
    assert found.measure.tokens == lengths and found.longest == max(lengths)
    assert sum(share.tokens for share in found.groups) == sum(lengths)
    assert sum(share.token_share for share in found.groups) == pytest.approx(100, abs=0.2)
    trained = [sum(encoder.encode_row(row).trained) for row in dataset.rows()]
    assert found.groups[1].trained_share == pytest.approx(100 * sum(trained[:2]) / sum(trained), abs=0.1)
    assert statistics(dataset).measure is None and statistics(dataset).kinds == found.kinds


def test_a_histogram_counts_every_row() -> None:
    assert histogram([1, 32, 33, 64, 65, 0]) == [Bar(0, 32, 3), Bar(32, 64, 2), Bar(64, 128, 1)]
    assert histogram([]) == [Bar(0, 32, 0)]
    lengths = [n * 7 % 900 for n in range(500)]
    assert sum(bar.rows for bar in histogram(lengths)) == 500


def test_how_rows_pack(dataset: Dataset, tiny_model: Path) -> None:
    measure = measure_dataset(dataset, Encoder.from_folder(tiny_model))
    found = packing(measure, 128)
    assert sum(span.end - span.start for pack in found.packs for span in pack) == sum(measure.lengths_at(128))
    assert found.filled > found.filled_alone and 0 < found.filled <= 1
    longest = measure.tokens.index(max(measure.tokens))
    assert longest == 3 and measure.lengths_at(128)[3] == measure.tokens[3] > 128, "a document is split and not cut"
    assert measure.cut_at(64) == [2] and max(measure.lengths_at(64)[:3]) == 64
    assert len(packs_of(found, longest)) == -(-measure.tokens[longest] // 128)
    assert any(len(pack) > 1 for pack in found.packs) and packs_of(found, 99) == []


def test_a_large_dataset_is_sampled_alike_from_its_file(workspace: Workspace, tiny_model: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a " * (n % 7)}, {"role": "assistant", "content": "b"}], "group": "general"}
            for n in range(1200)]
    dataset, encoder = save_dataset(workspace, "many", rows, "test"), Encoder.from_folder(tiny_model)
    assert measure_dataset(dataset, encoder) == measure_rows(rows, encoder) and measure_dataset(dataset, encoder).is_sample
    assert [place for place, _ in dataset.spread_rows(100)] == list(range(0, 1200, 12))
    assert dataset.first_rows(3) == rows[:3] and sum(1 for _ in dataset.each_row()) == 1200
