"""Editing the rows of a dataset: a page of them as a table, and saving the whole."""

from __future__ import annotations

import pytest

from core.data.library import delete_dataset, list_datasets, load_dataset, save_dataset, update_rows
from core.data.table import edit_rows, find_rows, page_count, table_page
from core.errors import StudioError
from core.workspace import Workspace


def row(*turns: str, group: str = "general") -> dict:
    roles = ["user", "assistant"] * len(turns)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)], "group": group, "lang": "en"}


ROWS = [row("a", "A"), row("b", "B", "c", "C", group="near"), row("d", "D"), row("e", "E")]


def test_a_page_shows_the_last_exchange() -> None:
    first, second = table_page(ROWS, [0, 1])
    assert first == {"group": "general", "lang": "en", "before": "", "question": "a", "answer": "A"}
    assert second["before"] == "user: b\nassistant: B" and (second["question"], second["answer"]) == ("c", "C")
    assert (page_count(0), page_count(20), page_count(21)) == (1, 1, 2)
    assert find_rows(ROWS, "B") == [1] and find_rows(ROWS, group="near") == [1] and find_rows(ROWS) == [0, 1, 2, 3]


def test_edits_of_a_page_become_rows() -> None:
    cut = [{**ROWS[0], "messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "A", "cut": True}]}, *ROWS[1:]]
    edited = edit_rows(cut, [0, 1, 2], {
        "edited_rows": {0: {"answer": "AA"}, "1": {"question": "cc", "group": "identity"}}, "deleted_rows": [2],
        "added_rows": [{"question": "neu?", "answer": "好的好的"}, {}]})
    assert [item["messages"][-1]["content"] for item in edited] == ["AA", "C", "好的好的", "E"]
    assert edited[0]["messages"][1] == {"role": "assistant", "content": "AA"}, "a rewritten answer is whole"
    assert edited[1]["messages"][2]["content"] == "cc" and edited[1]["group"] == "identity"
    assert edited[2]["group"] == "general" and edited[2]["lang"] == "zh"
    assert cut[0]["messages"][1]["content"] == "A" and edit_rows(cut, [0], {}) == cut


def test_new_rows_come_at_the_end_of_the_page_even_when_its_last_row_goes() -> None:
    edited = edit_rows(ROWS, [0, 1], {"deleted_rows": [1], "added_rows": [{"question": "x", "answer": "y"}]})
    assert [item["messages"][0]["content"] for item in edited] == ["a", "x", "d", "e"]
    assert len(edit_rows(ROWS, [], {"added_rows": [{"question": "x", "answer": "y"}]})) == 5


@pytest.mark.parametrize("edits", [
    {"edited_rows": {0: {"answer": " "}}}, {"edited_rows": {0: {"question": None}}}, {"added_rows": [{"question": "x"}]}])
def test_empty_texts_are_refused(edits: dict) -> None:
    with pytest.raises(StudioError, match="is empty"):
        edit_rows(ROWS, [0], edits)


def test_saving_rows_rewrites_the_card(workspace: Workspace) -> None:
    saved = save_dataset(workspace, "mine", ROWS, "test", probes=[{"id": "p"}], key_phrases={"en": "Alex"})
    assert saved.card.changed is None
    changed = update_rows(workspace, "mine", ROWS[:2], saved.card.sha256)
    read = load_dataset(workspace, "mine")
    assert read.rows() == ROWS[:2] and read.card == changed.card and read.probes() == [{"id": "p"}]
    assert (read.card.rows, read.card.groups, read.card.key_phrases) == (2, {"general": 1, "near": 1}, {"en": "Alex"})
    assert read.card.changed and read.card.created == saved.card.created
    with pytest.raises(StudioError, match="another window"):
        update_rows(workspace, "mine", ROWS, saved.card.sha256)
    with pytest.raises(StudioError, match="empty"):
        update_rows(workspace, "mine", [], changed.card.sha256)
    assert load_dataset(workspace, "mine").rows() == ROWS[:2]


def test_deleting(workspace: Workspace) -> None:
    save_dataset(workspace, "mine", ROWS, "test")
    delete_dataset(workspace, "mine")
    assert list_datasets(workspace) == [] and list(workspace.datasets.iterdir()) == []
    with pytest.raises(StudioError):
        delete_dataset(workspace, "mine")
