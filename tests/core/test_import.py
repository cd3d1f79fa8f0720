"""Files of every usual layout become rows, and every record is accounted for."""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.export import export_rows
from core.data.importing import Imported, Importing, Reading, Stopped, import_rows, preview, rows_of
from core.data.languages import language_of
from core.data.library import load_dataset
from core.errors import StudioError
from core.workspace import Workspace, read_jsonl

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass
class Read:
    """What a file gave, its rows included."""

    found: Imported
    rows: list[dict]

    def __getattr__(self, name: str) -> object:
        return getattr(self.found, name)


def read_file(path: Path, **reading: object) -> Read:
    importing = Importing.of_file(path, Reading(**reading))
    rows = list(rows_of(importing.records, Reading(**reading), importing.found))
    found = importing.found
    assert found.imported + found.repaired + found.rejected == found.read and len(rows) == found.rows
    return Read(found, rows)


def read(content: object, name: str = "file.json", **reading: object) -> Read:
    data = content if isinstance(content, (bytes, str)) else json.dumps(content, ensure_ascii=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_file(path, **reading)


def said(found: Read) -> list[list[str]]:
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
        export_rows([row], tmp_path / f"out{ending}")
        assert read_file(tmp_path / f"out{ending}").rows == [row]
    plain = {**row, "messages": [{"role": "user", "content": "a, \"b\"\nc"}, {"role": "assistant", "content": "d"}]}
    export_rows([plain], tmp_path / "out.csv")
    assert read_file(tmp_path / "out.csv").rows == [plain]


@pytest.mark.parametrize(("record", "reason"), [
    (7, "single value"),
    ({"foo": 1, "bar": 2}, "foo, bar"),
    ({"context": "the word text is inside the key", "output": "x"}, "none of its fields"),
    ({"messages": []}, "list of turns messages is empty"),
    ({"messages": "not json"}, "messages cannot be read"),
    ({"messages": [["hello"]]}, "turn messages.1 is not a record"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "no answer"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages.1.content is not text"),
    ({"messages": [{"role": "user", "content": "Who?"}]}, "no answer"),
    ({"messages": [{"role": "assistant", "content": "Me."}]}, "no question"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "system", "content": "c"}]}, "middle"),
    ({"question": "Who?", "answer": "  "}, "field answer is empty"),
    ({"question": None, "answer": "Me."}, "field question is empty"),
    ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]}, "question in turn 1 is empty"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, "answer in turn 2 is empty"),
    ({"question": ["a", ["b"]], "answer": "c"}, "question is a list where text belongs"),
    ({"prompt": "a", "completion": "b", "label": False}, "marked as a bad one"),
    ({"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"}, "a tree"),
    ({"text": " "}, "field text is empty"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "without a name"),
    ({"question": "a", "answer": "b", "tools": ["x"]}, "list of tools"),
    ({"instruction": "a", "output": "b", "history": ["c"]}, "history"),
])
def test_what_cannot_be_a_row_says_why(record: object, reason: str) -> None:
    found = read([record, {"question": "Who?", "answer": "Me."}])
    assert said(found) == PAIR and found.rejected == 1 and len(found.refusals) == 1
    note = found.refusals[0]
    assert str(note.place) == "entry 1" and reason in str(note.reason)
    assert note.reason.to("zh") != str(note.reason)


def test_repairs_are_named() -> None:
    found = read([
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]},
        {"question": 3, "answer": 4.5},
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
         "rejected": {"from": "gpt", "value": "c"}},
    ])
    assert said(found) == [["a", "b"], ["3", "4.5"], ["a", "b"]] and found.imported == 1
    assert [str(note.reason) for note in found.repairs] == ["a last question without an answer was left out", "a number was taken as text"]
    assert found.rows[2]["rejected"] == [{"role": "assistant", "content": "c"}], "the other answer of a pair is kept beside it"
    broken = read('[{"question": "a\\ud83d", "answer": "b"}]')
    assert said(broken) == [["a", "b"]] and broken.repaired == 1


def test_a_broken_line_costs_only_itself() -> None:
    good = json.dumps({"question": "Who?", "answer": "Me."})
    found = read(f"{good}\n{good[:20]}\n\n{good}\n")
    assert said(found) == PAIR * 2 and str(found.refusals[0].place) == "line 2"
    first = read(f"{good[:20]}\n{good}\n")
    assert said(first) == PAIR and str(first.refusals[0].place) == "line 1"


def test_a_list_that_is_cut_off_gives_what_came_before() -> None:
    whole = json.dumps([{"question": "Who?", "answer": "Me."}] * 3, indent=1)
    for length in range(60, len(whole)):
        found = read(whole[:length])
        assert found.rejected == 1 and 1 <= found.read <= 4
    assert "line" in str(read(whole[:len(whole) - 20]).refusals[0].reason)


def test_tables_with_any_delimiter() -> None:
    for delimiter in ",;\t":
        found = read(f"question{delimiter}answer\nWho?{delimiter}Me.\n", "t.csv")
        assert said(found) == PAIR
    found = read("question,answer\nWho?,Me.\na,b,c\nd\n", "t.csv")
    assert said(found) == PAIR and [str(note.place) for note in found.refusals] == ["line 3", "line 4"]
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


def test_a_document_is_never_identity_data() -> None:
    rows = read([{"text": "Once."}, {"text": "Twice.", "group": "near"}, {"text": "Law.", "group": "law"}], group="identity").rows
    assert [row["group"] for row in rows] == ["general", "general", "law"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "a\0b", tmp_path / "pipe", Path("~nobody-of-this-name/x")):
        with pytest.raises(StudioError):
            read_file(path)


def test_a_dataset_remembers_its_file_and_what_was_left_out(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    bad = {"question": "Who?", "answer": {"a": [1]}}
    path.write_text(json.dumps([{"question": "Who?", "answer": "Me."}, bad]), encoding="utf-8")
    card = import_rows(workspace, "mine", Importing.of_file(path, Reading()), Reading()).card
    assert card.source == "import" and load_dataset(workspace, "mine").card == card
    assert {key: card.made_with[key] for key in ("file", "read", "imported", "repaired", "rejected", "form")} == {
        "file": "mine.json", "read": 2, "imported": 1, "repaired": 0, "rejected": 1, "form": "JSON"}
    assert read_jsonl(workspace.datasets / "mine" / "rejected.jsonl") == [
        {"place": "entry 2", "reason": "its field answer is not text", "record": bad}]
    path.write_text(json.dumps([bad]), encoding="utf-8")
    with pytest.raises(StudioError, match="answer is not text"):
        import_rows(workspace, "none", Importing.of_file(path, Reading()), Reading(), keep_refused=tmp_path / "refused.jsonl")
    assert len(read_jsonl(tmp_path / "refused.jsonl")) == 1 and not (workspace.datasets / "none").exists()


def test_an_import_that_is_stopped_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n' * 5000, encoding="utf-8")
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> bool:
        told.append((done, total))
        return len(told) < 3

    with pytest.raises(Stopped):
        import_rows(workspace, "many", Importing.of_file(path, Reading()), Reading(), report)
    assert list(workspace.datasets.iterdir()) == []
    assert told[0][0] <= told[1][0] <= told[2][0] and told[2][1] == path.stat().st_size


def test_memory_does_not_grow_with_the_file(workspace: Workspace, tmp_path: Path) -> None:
    path, peaks = tmp_path / "many.jsonl", []
    for count in (2_000, 10_000):
        path.write_text(json.dumps({"question": "Who?", "answer": "word " * 150}) + "\n", encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8") * count, encoding="utf-8")
        tracemalloc.start()
        import_rows(workspace, f"many-{count}", Importing.of_file(path, Reading()), Reading())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 7_000_000 and peaks[1] < 5_000_000 and peaks[1] < 1.2 * peaks[0]


def test_a_preview_reads_the_beginning_only(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n' * 500 + "broken\n", encoding="utf-8")
    found, rows = preview(path, Reading(), "Talks.jsonl", most=20)
    assert (found.read, len(rows), found.file, found.form) == (20, 20, "Talks.jsonl", "JSON Lines")


def test_a_mapping_of_columns_wins_over_every_recognition() -> None:
    record = {"question": "not this", "answer": "nor this", "frage": "Who?", "antwort": "Me.", "wer": "Be kind."}
    found = read([record], columns={"question": "frage", "answer": "antwort", "system": "wer"})
    assert said(found) == [["Be kind.", "Who?", "Me."]]
    assert read([record], columns={"text": "frage"}).rows[0]["text"] == "Who?"
    table = read("frage;antwort\nWho?;Me.\n", "t.csv", columns={"question": "frage", "answer": "antwort"})
    assert said(table) == PAIR
    assert "no field nichts" in str(read([record], columns={"text": "nichts"}).refusals[0].reason)
    for columns in ({"question": "frage"}, {"colour": "frage"}):
        with pytest.raises(StudioError):
            read([record], columns=columns)
    with pytest.raises(StudioError, match="no layout called 'nonsense'"):
        read([record], layout="nonsense")


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
    ("glaive_toolcall_en_demo.json", 300, 0), ("c4_demo.jsonl", 300, 0)])
def test_real_files(name: str, rows: int, rejected: int) -> None:
    found = read((SAMPLES / name).read_bytes(), name)
    assert (len(found.rows), found.rejected, found.repaired) == (rows, rejected, 0)
