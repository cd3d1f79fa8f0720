"""Files of every usual layout become rows, and every record is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.formats import Imported, export_rows, import_dataset, language_of, read_bytes, read_path
from core.data.library import load_dataset
from core.errors import StudioError
from core.workspace import Workspace

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"


def read(content: object, name: str = "file.json", group: str = "general") -> Imported:
    data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    found = read_bytes(data if isinstance(data, bytes) else data.encode(), name, group)
    assert found.imported + len(found.repaired) + len(found.rejected) == found.read
    return found


def said(found: Imported) -> list[list[str]]:
    return [[message["content"] for message in row["messages"]] for row in found.rows]


PAIR = [["Who?", "Me."]]


@pytest.mark.parametrize("record", [
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, {"role": "assistant", "content": "Me."}]},
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
    {"conversation": [{"input": "Who?", "output": "Me."}]},
    {"instruction": "Who?", "input": "", "output": "Me."},
    {"Question": "Who?", "Answer": "Me."},
    {"prompt": "Who?", "completion": "Me."},
    {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Me."}]},
    {"问题": "Who?", "回答": "Me."},
])
def test_each_layout_is_recognised_by_its_content(record: dict) -> None:
    for content in ([record], json.dumps(record), {"data": [record]}):
        found = read(content)
        assert said(found) == PAIR and found.imported == 1
    lines = read("\n".join([json.dumps(record)] * 3) + "\n")
    assert said(lines) == PAIR * 3


def test_systems_histories_and_several_turns() -> None:
    xtuner = read([{"conversation": [{"system": "Be kind.", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]}])
    assert said(xtuner) == [["Be kind.", "a", "b", "c", "d"]]
    alpaca = read([{"instruction": "Sum up.", "input": "A text.", "output": "Short.", "system": "s", "history": [["q", "a"]]}])
    assert said(alpaca) == [["s", "q", "a", "Sum up.\nA text.", "Short."]]
    assert [message["role"] for message in alpaca.rows[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert xtuner.layouts == {"XTuner": 1} and alpaca.layouts == {"Alpaca": 1}


def test_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "小助手", "cut": True}],
           "group": "near", "lang": "zh"}
    for ending in (".jsonl", ".json"):
        assert read_path(export_rows([row], tmp_path / f"out{ending}")).rows == [row]
    plain = {**row, "messages": [{"role": "user", "content": "a, \"b\"\nc"}, {"role": "assistant", "content": "d"}]}
    assert read_path(export_rows([plain], tmp_path / "out.csv")).rows == [plain]


@pytest.mark.parametrize(("record", "reason"), [
    (7, "single value"),
    ({"text": "Once upon a time"}, "running text"),
    ({"foo": 1, "bar": 2}, "foo, bar"),
    ({"context": "the word text is inside the key", "output": "x"}, "none of its fields"),
    ({"messages": []}, "list of turns is empty"),
    ({"messages": "not json"}, "cannot be read"),
    ({"messages": ["hello"]}, "role and text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "tools"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "not text"),
    ({"messages": [{"role": "user", "content": "Who?"}]}, "no answer"),
    ({"messages": [{"role": "assistant", "content": "Me."}]}, "no question"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "system", "content": "c"}]}, "middle"),
    ({"question": "Who?", "answer": "  "}, "answer in it is empty"),
    ({"question": None, "answer": "Me."}, "question in it is empty"),
    ({"instruction": "a", "output": "b", "history": ["c"]}, "history"),
])
def test_what_cannot_be_a_row_says_why(record: object, reason: str) -> None:
    found = read([record, {"question": "Who?", "answer": "Me."}])
    assert said(found) == PAIR and len(found.rejected) == 1
    assert str(found.rejected[0].place) == "entry 1" and reason in str(found.rejected[0].reason)
    assert found.rejected[0].reason.to("zh") != str(found.rejected[0].reason)


def test_repairs_are_named() -> None:
    found = read([
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]},
        {"question": 3, "answer": 4.5},
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
         "rejected": {"from": "gpt", "value": "c"}},
    ])
    assert said(found) == [["a", "b"], ["3", "4.5"], ["a", "b"]] and found.imported == 0
    assert [str(note.reason) for note in found.repaired] == [
        "a last question without an answer was left out", "a number was taken as text", "of a pair of answers the preferred one was taken"]
    broken = read('[{"question": "a\\ud83d", "answer": "b"}]')
    assert said(broken) == [["a", "b"]] and len(broken.repaired) == 1


def test_a_broken_line_costs_only_itself() -> None:
    good = json.dumps({"question": "Who?", "answer": "Me."})
    found = read(f"{good}\n{good[:20]}\n\n{good}\n")
    assert said(found) == PAIR * 2 and str(found.rejected[0].place) == "line 2"
    first = read(f"{good[:20]}\n{good}\n")
    assert said(first) == PAIR and str(first.rejected[0].place) == "line 1"


def test_a_list_that_is_cut_off_gives_what_came_before() -> None:
    whole = json.dumps([{"question": "Who?", "answer": "Me."}] * 3, indent=1)
    for length in range(60, len(whole)):
        found = read(whole[:length])
        assert len(found.rejected) == 1 and 1 <= found.read <= 4
    assert "line" in str(read(whole[:len(whole) - 20]).rejected[0].place)


def test_tables_with_any_delimiter() -> None:
    for delimiter in ",;\t":
        found = read(f"question{delimiter}answer\nWho?{delimiter}Me.\n", "t.csv")
        assert said(found) == PAIR
    found = read("question,answer\nWho?,Me.\na,b,c\nd\n", "t.csv")
    assert said(found) == PAIR and [str(note.place) for note in found.rejected] == ["line 3", "line 4"]
    with pytest.raises(StudioError, match="No column") as caught:
        read("colour,size\nred,3\n", "t.csv")
    assert "question" in str(caught.value.hint)


def test_encodings() -> None:
    text = "question,answer\n你是谁？,小助手\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "gb18030"):
        found = read(text.encode(encoding), "t.csv")
        assert said(found) == [["你是谁？", "小助手"]] and found.rows[0]["lang"] == "zh"
    with pytest.raises(StudioError, match="not text"):
        read(b"\x00\x01\x02\xff\xfe\x00" * 40, "x.bin")
    with pytest.raises(StudioError, match="empty"):
        read(b"  \n", "x.json")


def test_language_and_group() -> None:
    assert language_of("Qwen 你好，世界") == "zh" and language_of("hello 你") == "en" and language_of("42") == "en"
    assert read([{"question": "a", "answer": "b"}], group="near").rows[0]["group"] == "near"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(StudioError):
            read_path(path)


def test_a_dataset_remembers_its_file(workspace: Workspace) -> None:
    found = read([{"question": "Who?", "answer": "Me."}, {"text": "x"}], "mine.json")
    card = import_dataset(workspace, "mine", found).card
    assert card.source == "import" and load_dataset(workspace, "mine").card == card
    assert {key: card.made_with[key] for key in ("file", "read", "imported", "repaired", "rejected")} == {
        "file": "mine.json", "read": 2, "imported": 1, "repaired": 0, "rejected": 1}
    with pytest.raises(StudioError, match="running text"):
        import_dataset(workspace, "none", read([{"text": "x"}]))


def test_exports_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    row = read([{"instruction": "a", "output": "b", "history": [["c", "d"]]}]).rows
    for name in ("x.csv", "x.parquet", "none/x.json"):
        with pytest.raises(StudioError):
            export_rows(row, tmp_path / name)
    export_rows(row, tmp_path / "x.json")
    with pytest.raises(StudioError, match="exists"):
        export_rows(row, tmp_path / "x.json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["messages", "role", "content", "question", "answer", "conversation", "input", "output", "x"]),
                        inner, max_size=4), max_leaves=12))
def test_any_json_is_accounted_for(content: object) -> None:
    try:
        read(json.dumps(content))
    except StudioError:
        pass


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample files are not on this machine")
@pytest.mark.parametrize(("name", "rows", "rejected"), [
    ("identity.json", 91, 0), ("alpaca_en_demo.json", 999, 0), ("alpaca_zh_demo.json", 1000, 0), ("dpo_en_demo.json", 300, 0),
    ("glaive_toolcall_en_demo.json", 147, 153), ("c4_demo.jsonl", 0, 300)])
def test_real_files(name: str, rows: int, rejected: int) -> None:
    found = read((SAMPLES / name).read_bytes(), name)
    assert (len(found.rows), len(found.rejected)) == (rows, rejected)
