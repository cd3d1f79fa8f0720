"""Layouts by name and by recognition: tools, pairs of answers, the map functions of XTuner, and other public forms."""

from __future__ import annotations

import json

import pytest

from core.data.importing import Imported, Reading, rows_of
from core.data.layouts import LAYOUTS
from core.data.records import Record


def read(records: list, layout: str | None = None) -> tuple[Imported, list[dict]]:
    """What records become, as an import reads them."""
    found = Imported("test")
    rows = list(rows_of((Record("entry {number}", number, record) for number, record in enumerate(records, 1)), Reading(layout), found))
    assert found.imported + found.repaired + found.rejected == found.read == len(records) and found.rows == len(rows)
    return found, rows


def said(rows: list[dict]) -> list[list[str]]:
    return [[message["content"] for message in row["messages"]] for row in rows]


PAIR = [["Who?", "Me."]]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("record", [
    {"messages": [{"role": "user", "content": "Rain?"},
                  {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {
                      "name": "weather", "arguments": "{\"city\": \"Paris\"}"}}]},
                  {"role": "tool", "content": "wet"}, {"role": "assistant", "content": "Yes."}], "tools": [TOOL]},
    {"messages": [{"role": "user", "content": "Rain?"},
                  {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": "{\"city\": \"Paris\"}"}},
                  {"role": "function", "content": "wet"}, {"role": "assistant", "content": "Yes."}], "functions": [TOOL["function"]]},
    {"conversations": [{"from": "human", "value": "Rain?"},
                       {"from": "function_call", "value": "{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}"},
                       {"from": "observation", "value": "wet"}, {"from": "gpt", "value": "Yes."}],
     "tools": json.dumps([TOOL["function"]])},
])
def test_calls_of_tools_and_their_results_survive(record: dict) -> None:
    row = read([record])[1][0]
    assert row["messages"] == [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                               {"role": "tool", "content": "wet"}, {"role": "assistant", "content": "Yes."}]
    assert row["tools"] == [TOOL]


def test_other_calls() -> None:
    _, xlam = read([{"query": "Rain?", "answers": '[{"name": "weather", "arguments": {"city": "Paris"}}]', "tools": json.dumps([TOOL])}])
    assert xlam[0]["messages"][1]["tool_calls"] == [CALL]
    found, odd = read([{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{'name' oops"},
                                   {"from": "observation", "value": "x"}, {"from": "gpt", "value": "b"}]}])
    assert odd[0]["messages"][1] == {"role": "assistant", "content": "{'name' oops"} and found.repaired == 1


USER, BOT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}


@pytest.mark.parametrize("record", [
    {"prompt": "Who?", "chosen": "Me.", "rejected": "You."},
    {"conversations": [{"from": "human", "value": "Who?"}], "chosen": {"from": "gpt", "value": "Me."},
     "rejected": {"from": "gpt", "value": "You."}},
    {"prompt": "Who?", "chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "You."}]},
    {"prompt": [USER], "chosen": [BOT], "rejected": [{"role": "assistant", "content": "You."}]},
    {"chosen": "\n\nHuman: Who?\n\nAssistant: Me.", "rejected": "\n\nHuman: Who?\n\nAssistant: You."},
    {"question": "Who?", "response_j": "Me.", "response_k": "You."},
    {"input": {"messages": [USER]}, "preferred_output": [BOT], "non_preferred_output": [{"role": "assistant", "content": "You."}]},
])
def test_pairs_of_answers_are_kept_as_pairs(record: dict) -> None:
    found, rows = read([record])
    assert said(rows) == PAIR and found.layouts == {"preference": 1}
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "You."}] and found.imported == 1


def test_a_pair_of_the_same_answers_is_an_ordinary_row() -> None:
    found, rows = read([{"prompt": "Who?", "chosen": "Me.", "rejected": "Me."}, {"prompt": "Who?", "chosen": "Me.", "rejected": None}])
    assert said(rows) == PAIR * 2 and found.repaired == 2 and not any("rejected" in row for row in rows)


# layout by name -> (record, texts of the row without its system text, whether it has one)
BY_NAME = {
    "alpaca": ({"instruction": "Sum", "input": "1 2", "output": "3"}, ["Sum\n1 2", "3"], False),
    "alpaca_zh": ({"instruction_zh": "求和", "input_zh": "", "output_zh": "3"}, ["求和", "3"], False),
    "arxiv": ({"abstract": "We show.", "title": "It"}, ["We show.", "It"], True),
    "code_alpaca": ({"prompt": "Add", "completion": "a+b"}, ["Add", "a+b"], True),
    "tiny_codes": ({"prompt": "Add", "response": "a+b"}, ["Add", "a+b"], True),
    "colors": ({"description": "Sky: a light blue: clear", "color": "#add8e6"}, ["a light blue: clear", "#add8e6"], True),
    "crime_kg_assitan": ({"input": "问", "output": "答"}, ["问", "答"], True),
    "law_reference": ({"question": "问", "answer": "答"}, ["问", "答"], True),
    "medical": ({"instruction": "疼", "input": "头", "output": "休息"}, ["疼\n头", "休息"], True),
    "sql": ({"context": "CREATE TABLE t", "question": "all?", "answer": "SELECT *"}, ["CREATE TABLE t\nall?", "SELECT *"], True),
    "openorca": ({"system_prompt": "Think.", "question": "q", "response": "r"}, ["q", "r"], True),
    "stack_exchange": ({"question": "q", "response": "r"}, ["q", "r"], False),
    "default": ({"input": "q", "output": "r"}, ["q", "r"], False),
    "wizardlm": ({"conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]},
                 ["q", "r"], False),
    "oasst1": ({"text": "### Human: q### Assistant: r\n### A heading\nmore### Human: last"}, ["q", "r\n### A heading\nmore"], False),
    "openai": ({"messages": [USER, BOT]}, ["Who?", "Me."], False),
    "moss_sft": ({"meta_instruction": "You are MOSS.", "num_turns": 1, "chat": {"turn_1": {
        "Human": "<|Human|>: q<eoh>", "Inner Thoughts": "<|Inner Thoughts|>: None<eot>", "Commands": "<|Commands|>: Search(x)<eoc>",
        "Tool Responses": "<|Results|>: found<eor>", "MOSS": "<|MOSS|>: r<eom>"}}}, ["q", "Search(x)", "found", "r"], True),
    "msagent_react": ({"conversations": str([{"from": "user", "value": "q"}, {"from": "assistant", "value": (
        "I look it up.<|startofthink|>```JSON\n{\"api_name\": \"find\", \"parameters\": {\"a\": 1}}```<|endofthink|>"
        "<|startofexec|>```JSON\n{}```<|endofexec|>It is r.")}])},
        ["q", "Thought: I look it up.\nAction: find\nAction Input: {'a': 1}\nResponse: {}\nFinal Answer: It is r."], False),
    "preference": ({"prompt": [USER], "chosen": [BOT], "rejected": [USER, BOT]}, ["Who?", "Me."], False),
    "llava": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}, ["q", "r"], False),
    "llava_image_only": ({"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "r"}]}, ["q", "r"], False),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}, ["q", "r"], False),
    "xtuner": ({"conversation": [{"system": "s", "input": "q", "output": "r"}]}, ["q", "r"], True),
    "question_answer": ({"question": "q", "answer": "r"}, ["q", "r"], False),
    "prompt_completion": ({"prompt": "q", "completion": "r"}, ["q", "r"], False),
}


@pytest.mark.parametrize("layout", BY_NAME)
def test_each_layout_has_a_name(layout: str) -> None:
    record, texts, has_system = BY_NAME[layout]
    for name in (layout, f"{layout}_map_fn"):
        found, rows = read([record], layout=name)
        assert found.rejected == 0, found.refusals
        messages = rows[0]["messages"]
        assert [message["content"] for message in messages if message["role"] != "system"] == texts
        assert (messages[0]["role"] == "system") == has_system and found.layouts == {layout: 1}


def test_every_named_layout_is_tried_above() -> None:
    assert set(LAYOUTS) - set(BY_NAME) == {"pretrain", "orpo_dpo_mix_40k", "intel_orca_dpo"}
    assert read([{"text": "Once.", "title": "x"}], layout="pretrain")[1] == [{"text": "Once.", "group": "general", "lang": "en"}]
    for layout in ("alpaca", "sql", "wizardlm", "preference", "pretrain", "moss_sft"):
        assert read([{"x": "y"}], layout=layout)[0].rejected == 1
    assert "image" in str(read([{"image": "a.png", "conversations": []}], layout="llava")[0].refusals[0].reason)


@pytest.mark.parametrize(("record", "texts"), [
    ({"conversations": ["q", "r"], "source": "x"}, ["q", "r"]),
    ({"id": 3, "data": ["q", "r", "s", "t"]}, ["q", "r", "s", "t"]),
    ({"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "r"}]}],
      "systemInstruction": {"parts": [{"text": "s"}]}}, ["s", "q", "r"]),
    ({"chat": "USER: q\n\n\nASSISTANT: r <|endoftext|>", "system": "SYSTEM: s"}, ["s", "q", "r"]),
    ({"instruction": "q", "context": "c", "response": "r", "category": "open"}, ["q\nc", "r"]),
    ({"kind": "x", "input": "q", "target": "r"}, ["q", "r"]),
    ({"content": "q", "summary": "r"}, ["q", "r"]),
    ({"prompt": "q", "messages": [USER, BOT]}, ["Who?", "Me."]),
    ({"messages": str([USER, BOT])}, ["Who?", "Me."]),
    ({"message_tree_id": "1", "prompt": {"role": "prompter", "text": "q", "replies": [
        {"role": "assistant", "text": "worse", "rank": 1, "replies": []}, {"role": "assistant", "text": "unranked", "rank": None},
        {"role": "assistant", "text": "r", "rank": 0, "replies": [{"role": "prompter", "text": "and?", "replies": [
            {"role": "assistant", "text": "s"}]}]}]}}, ["q", "r", "and?", "s"]),
])
def test_other_public_forms(record: dict, texts: list[str]) -> None:
    assert said(read([record])[1]) == [texts]


def test_marks_of_what_is_not_trained_survive() -> None:
    _, rows = read([{"messages": [USER, {**BOT, "weight": 0}, USER, {**BOT, "loss": None}]},
                  {"messages": [USER, {**BOT, "loss": False}]},
                  {"conversation": [{"input": "Who?", "output": "Me.", "output_with_loss": False, "need_eos_token": False}]}])
    assert [[message.get("train") for message in row["messages"]] for row in rows] == [
        [None, False, None, None], [None, False], [None, False]]
    assert rows[2]["messages"][1]["cut"] is True
