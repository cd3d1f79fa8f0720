"""Shares of rows and tokens, and mixed datasets that can be made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.encode import Encoder
from core.data.library import Dataset, save_dataset
from core.data.mix import Part, mix_datasets, most_rows, split_rows, token_shares
from core.errors import StudioError
from core.workspace import Workspace


def make(workspace: Workspace, name: str, count: int, answer: str = "Yes.", group: str = "general", **extra: object) -> Dataset:
    rows = [{"messages": [{"role": "user", "content": f"{name} {number}?"}, {"role": "assistant", "content": answer}],
             "group": group, "lang": "en"} for number in range(count)]
    return save_dataset(workspace, name, rows, "test", **extra)


def names(dataset: Dataset) -> list[str]:
    return [row["messages"][0]["content"] for row in dataset.rows()]


def test_most_rows_uses_no_row_twice() -> None:
    assert most_rows([10, 100], [1, 1]) == 20
    assert most_rows([10, 100], [1, 3]) == 40
    assert most_rows([90, 100], [1, 10]) == 110


def test_split_rows_sums_up() -> None:
    for total in range(1, 40):
        assert sum(split_rows(total, [1, 2, 0.5])) == total
    assert split_rows(7, [1, 1]) == [4, 3]


def test_token_shares_follow_the_length(workspace: Workspace, tiny_model: Path) -> None:
    make(workspace, "short", 8)
    make(workspace, "long", 30, "A much longer answer with a great many words in it, one after the other.")
    short, long = token_shares(workspace, [Part("short", 1), Part("long", 1)], Encoder.from_folder(tiny_model))
    assert short.row_share == long.row_share == 0.5 and (short.rows, long.rows) == (8, 30)
    assert short.trained_share < 0.3 < 0.7 < long.trained_share
    assert short.token_share + long.token_share == pytest.approx(1) and short.trained_share + long.trained_share == pytest.approx(1)
    assert long.mean_trained < long.mean_tokens


def test_a_mixture_remembers_its_sources(workspace: Workspace) -> None:
    probe = {"id": "identity-en-01", "group": "identity", "lang": "en", "messages": [{"role": "user", "content": "And you?"}]}
    one = make(workspace, "one", 10, probes=[probe], key_phrases={"en": "Alex"}, group="identity")
    two = make(workspace, "two", 50, probes=[probe, {**probe, "id": "near-en-01"}])
    mixed = mix_datasets(workspace, "both", [Part("one", 1), Part("two", 3)], seed=4)
    assert mixed.card.rows == 40 and mixed.card.groups == {"identity": 10, "general": 30}
    assert len(set(names(mixed))) == 40, "no row twice"
    assert mixed.card.made_with == {"seed": 4, "by": "rows", "sources": [
        {"dataset": "one", "groups": None, "weight": 1, "rows": 10, "sha256": one.card.sha256},
        {"dataset": "two", "groups": None, "weight": 3, "rows": 30, "sha256": two.card.sha256}]}
    assert [probe["id"] for probe in mixed.probes()] == ["identity-en-01", "near-en-01"] and mixed.card.key_phrases == {"en": "Alex"}
    again = mix_datasets(workspace, "again", [Part("one", 1), Part("two", 3)], seed=4)
    other = mix_datasets(workspace, "other", [Part("one", 1), Part("two", 3)], seed=5)
    assert again.card.sha256 == mixed.card.sha256 != other.card.sha256


def test_more_rows_than_there_are_repeat_evenly(workspace: Workspace) -> None:
    make(workspace, "one", 4)
    mixed = mix_datasets(workspace, "more", [Part("one", 1)], rows=10)
    times = sorted(names(mixed).count(name) for name in set(names(mixed)))
    assert times == [2, 2, 3, 3]


def test_weights_may_be_shares_of_tokens(workspace: Workspace, tiny_model: Path) -> None:
    make(workspace, "short", 400)
    make(workspace, "long", 300, "A much longer answer with a great many words in it, one after the other.")
    encoder, parts = Encoder.from_folder(tiny_model), [Part("short", 3), Part("long", 1)]
    mixed = mix_datasets(workspace, "even", parts, encoder=encoder)
    trained = {True: 0, False: 0}
    for row in mixed.rows():
        trained[row["messages"][0]["content"].startswith("short")] += sum(encoder.encode_row(row).trained)
    assert trained[True] / sum(trained.values()) == pytest.approx(0.75, abs=0.01)
    assert mixed.card.made_with["by"] == "tokens" and [source["weight"] for source in mixed.card.made_with["sources"]] == [3, 1]
    assert len(set(names(mixed))) == mixed.card.rows, "no row twice"


def test_groups_and_refusals(workspace: Workspace) -> None:
    make(workspace, "one", 4)
    for parts, rows in (([], None), ([Part("one", 0)], None), ([Part("none", 1)], None), ([Part("one", 1, ("near",))], None),
                        ([Part("one", 1)], 0), ([Part("one", 1)], 10**9)):
        with pytest.raises(StudioError):
            mix_datasets(workspace, "bad", parts, rows)
    assert not (workspace.datasets / "bad").exists()
