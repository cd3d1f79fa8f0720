"""What is exported in another tool's layout comes back as the same conversation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.export import EXPORTS, export_rows
from core.data.importing import Importing, Reading, rows_of
from core.errors import StudioError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20).filter(str.strip)
NAME = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-10**9, 10**9) | TEXT,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3), max_leaves=6)
CALL = st.builds(lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
                 NAME, st.dictionaries(NAME, VALUES, max_size=3))
TOOL = st.builds(lambda name: {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}, NAME)
TOOLS = st.lists(TOOL, max_size=2)


@st.composite
def conversations(draw: st.DrawFn, with_tools: bool = True) -> dict:
    """A row as an import leaves it: system first if at all, speakers in turn, an answer last."""
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        if with_tools and draw(st.booleans()):
            messages.append({"role": "assistant", "content": "", "tool_calls": draw(st.lists(CALL, min_size=1, max_size=2))})
            messages += [{"role": "tool", "content": draw(TEXT)} for _ in range(draw(st.integers(1, 2)))]
        messages.append({"role": "assistant", "content": draw(TEXT)})
    tools = draw(TOOLS) if with_tools else []
    return {"messages": messages, **({"tools": tools} if tools else {}), "group": "general", "lang": "en"}


def back(rows: list[dict], layout: str, ending: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"out{ending}"
        assert export_rows(rows, path, layout) == len(rows)
        importing = Importing.of_file(path, Reading())
        found = list(rows_of(importing.records, Reading(), importing.found))
        assert importing.found.rejected == importing.found.repaired == 0, (importing.found.refusals, importing.found.repairs)
    return [{key: value for key, value in row.items() if key not in ("group", "lang")} for row in found]


def said(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in ("group", "lang")} for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(conversations(), min_size=1, max_size=3), layout=st.sampled_from(["rows", "openai", "sharegpt"]),
       ending=st.sampled_from([".jsonl", ".json"]))
def test_conversations_with_tools_come_back(rows: list[dict], layout: str, ending: str) -> None:
    assert back(rows, layout, ending) == said(rows)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(conversations(with_tools=False), min_size=1, max_size=3), layout=st.sampled_from(["alpaca", "xtuner"]),
       ending=st.sampled_from([".jsonl", ".json"]))
def test_conversations_come_back(rows: list[dict], layout: str, ending: str) -> None:
    assert back(rows, layout, ending) == said(rows)


@settings(max_examples=30, deadline=None)
@given(question=TEXT, answer=TEXT, other=TEXT)
def test_pairs_of_answers_come_back(question: str, answer: str, other: str) -> None:
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
           "rejected": [{"role": "assistant", "content": answer + other}], "group": "general", "lang": "en"}
    for layout in ("rows", "openai"):
        assert back([row], layout, ".jsonl") == said([row])


def test_what_is_not_trained_stays_so() -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False},
                        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], "group": "general", "lang": "en"}
    for layout in ("rows", "openai"):
        assert back([row], layout, ".json") == said([row])


def test_the_forms_are_those_of_the_other_tools(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
                            "name": "f", "arguments": {"x": 1}}}]},
                        {"role": "tool", "content": "r"}, {"role": "assistant", "content": "b"}],
           "tools": [{"type": "function", "function": {"name": "f"}}], "group": "general", "lang": "en"}
    for layout in ("openai", "sharegpt"):
        export_rows([row], tmp_path / f"{layout}.json", layout)
    openai, sharegpt = (json.loads((tmp_path / f"{layout}.json").read_text())[0] for layout in ("openai", "sharegpt"))
    assert openai["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}', "OpenAI writes arguments as text"
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["system", "human", "function_call", "observation", "gpt"]
    assert json.loads(sharegpt["conversations"][2]["value"]) == {"name": "f", "arguments": {"x": 1}}
    pair = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2, "group": "general"}]
    export_rows(pair, tmp_path / "alpaca.json", "alpaca")
    assert json.loads((tmp_path / "alpaca.json").read_text()) == [{"instruction": "a", "input": "", "output": "b", "history": [["a", "b"]]}]


def test_exports_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    two = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2, "group": "general"}]
    document = [{"text": "Once.", "group": "general"}]
    for rows, name, layout in ((two, "x.csv", "rows"), (two, "x.parquet", "rows"), (two, "none/x.json", "rows"), (two, "x.json", "odd"),
                               (document, "x.json", "sharegpt"), (document, "x.json", "alpaca"), (document, "x.csv", "rows")):
        with pytest.raises(StudioError):
            export_rows(rows, tmp_path / name, layout)
        assert not (tmp_path / name).exists()
    export_rows(two, tmp_path / "x.json")
    with pytest.raises(StudioError, match="exists"):
        export_rows(two, tmp_path / "x.json")
    assert set(EXPORTS) == {"rows", "openai", "sharegpt", "alpaca", "xtuner"}
    for layout in ("openai", "xtuner"):
        export_rows(document, tmp_path / f"{layout}.jsonl", layout)
        assert "Once." in (tmp_path / f"{layout}.jsonl").read_text()
