"""Rows sent to a dataset one by one, as the chat page does."""

from __future__ import annotations

import hashlib

import pytest

from core.data.library import append_rows, load_dataset
from core.errors import StudioError


def row(question: str, group: str = "identity", lang: str = "en") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "I am Alex."}],
            "group": group, "lang": lang}


def test_rows_make_a_dataset_and_then_add_to_it(workspace):
    append_rows(workspace, "kept", [row("Who are you?")], "chat")
    append_rows(workspace, "kept", [row("你是谁？", lang="zh"), row("Who is Paris?", "near")], "chat")
    dataset = load_dataset(workspace, "kept")
    assert [item["messages"][0]["content"] for item in dataset.rows()] == ["Who are you?", "你是谁？", "Who is Paris?"]
    assert (dataset.card.rows, dataset.card.groups, dataset.card.languages) == (3, {"identity": 2, "near": 1}, ["en", "zh"])
    assert dataset.card.sha256 == hashlib.sha256((dataset.folder / "rows.jsonl").read_bytes()).hexdigest()


def test_a_name_outside_the_workspace_is_refused(workspace):
    with pytest.raises(StudioError, match="name of a dataset"):
        append_rows(workspace, "../up", [row("Who are you?")], "chat")
