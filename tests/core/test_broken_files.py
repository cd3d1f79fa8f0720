"""Broken files: each gives a correct import or one clear sentence, and no record is lost without a word.

Every case is written here by code. It says what must come of it: how many rows, how many of them repaired, how many records rejected,
and a word of the first reason; or a word of the sentence with which the whole file is refused.
"""

from __future__ import annotations

import gzip
import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.data.importing import Importing, Reading, rows_of
from core.errors import StudioError

GOOD = {"question": "Who?", "answer": "Me."}
LINE = json.dumps(GOOD)
PAIR = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


@dataclass(frozen=True)
class Comes:
    """What must come of a file."""

    rows: int = 0
    repaired: int = 0
    rejected: int = 0
    word: str = ""
    refused: str = ""


def lines(*records: object) -> bytes:
    return "".join((record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)) + "\n" for record in records).encode()


def listed(*records: object) -> bytes:
    return json.dumps(list(records), ensure_ascii=False).encode()


def talk(*turns: tuple[str, object]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def parquet(columns: dict[str, list], packed: str = "snappy") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression=packed)
    return sink.getvalue()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.json", LINE)
    return sink.getvalue()


TABLE = "question,answer\n"
ZH = "question,answer\n你是谁呢？我想知道,我是小助手，很高兴见到你。\n"
FR = "question,answer\nComment ça va ?,Très bien, merci.\n".replace("bien, merci", "bien")
CASES: dict[str, tuple[Callable[[], bytes] | bytes, Comes]] = {
    # JSON cut off or broken
    "truncated_list": (listed(GOOD, GOOD, GOOD)[:-25], Comes(2, 0, 1, "ends in the middle")),
    "truncated_list_in_the_first_entry": (listed(GOOD)[:20], Comes(0, 0, 1, "ends in the middle")),
    "list_not_closed": (listed(GOOD, GOOD)[:-1], Comes(2, 0, 1, "not closed")),
    "truncated_last_line": (lines(GOOD, GOOD) + LINE[:15].encode(), Comes(2, 0, 1, "not complete JSON")),
    "truncated_first_line": (lines(LINE[:15], GOOD), Comes(1, 0, 1, "not complete JSON")),
    "broken_entry_in_the_middle": (f'[{LINE}, {{"question": "a" "answer": "b"}}, {LINE}]'.encode(), Comes(2, 0, 1, "from line 1")),
    "broken_first_entry": (f'[{{"question": oops}},\n {LINE}]'.encode(), Comes(1, 0, 1, "not complete JSON")),
    "quote_never_closed": (f'[{LINE},\n{{"question": "a, "answer": "b"}},\n{LINE},\n{LINE}]'.encode(), Comes(3, 0, 1, "from line 2")),
    "single_quotes": (b"[{'question': 'a', 'answer': 'b'}]", Comes(0, 0, 1, "property name")),
    "trailing_comma": (f"[{LINE}, {LINE},]".encode(), Comes(2)),
    "text_behind_the_list": (f"[{LINE}] oops".encode(), Comes(1, 0, 1, "behind the end")),
    "comment_in_json": (f"[{LINE}, // a comment\n{LINE}]".encode(), Comes(2, 0, 1)),
    "line_breaks_inside_texts": (b'[{"question": "a\nb", "answer": "c\td"}]', Comes(1)),
    "objects_without_lines": (f"{LINE}{LINE} {LINE}".encode(), Comes(3)),
    "pretty_objects_one_after_another": ("\n".join([json.dumps(GOOD, indent=2)] * 3).encode(), Comes(3)),
    "deep_nesting": (b"[" * 100_000, Comes(0, 0, 1)),
    "deep_nesting_in_a_line": (lines('{"a":' * 50_000, GOOD), Comes(1, 0, 1, "nested too deeply")),
    "doubled_key": (lines('{"question": "a", "answer": "b", "answer": "c"}', GOOD), Comes(1, 0, 1, "answer stands there twice")),
    "doubled_key_in_a_list": (f'[{{"question": "a", "question": "b", "answer": "c"}}, {LINE}]'.encode(), Comes(1, 0, 1, "twice")),
    "doubled_key_same_value": (lines('{"question": "a", "question": "a", "answer": "b"}'), Comes(1)),
    "huge_number": (lines('{"question": ' + "9" * 5000 + ', "answer": "b"}', GOOD), Comes(1, 0, 1)),
    "not_a_number": (lines('{"question": "a", "answer": NaN}'), Comes(0, 0, 1, "answer is empty")),
    "empty_list": (b"[]", Comes(0, 0, 1, "list is empty")),
    "empty_object": (b"{}", Comes(0, 0, 1, "none of its fields")),
    "only_a_string": (b'["hello", 3, null, true, [1]]', Comes(0, 0, 5)),
    # encodings
    "bom": (b"\xef\xbb\xbf" + listed(GOOD), Comes(1)),
    "two_boms": (b"\xef\xbb\xbf\xef\xbb\xbf" + listed(GOOD), Comes(1)),
    "bom_in_json_lines": (b"\xef\xbb\xbf" + lines(GOOD, GOOD), Comes(2)),
    "bom_in_a_table": (b"\xef\xbb\xbf" + ZH.encode(), Comes(1)),
    "utf_16": (listed(GOOD).decode().encode("utf-16"), Comes(1)),
    "utf_16_lines_big_end": (b"\xfe\xff" + lines(GOOD, GOOD).decode().encode("utf-16-be"), Comes(2)),
    "utf_16_without_a_mark": (lines(GOOD, GOOD).decode().encode("utf-16-le"), Comes(2)),
    "utf_32": (listed(GOOD).decode().encode("utf-32"), Comes(1)),
    "gbk_table": (ZH.encode("gbk"), Comes(1)),
    "gbk_lines": (lines({"question": "你是谁呢？", "answer": "我是小助手。"}).decode().encode("gbk"), Comes(1)),
    "windows_1252": (FR.encode("cp1252"), Comes(1)),
    "one_bad_byte": ("".join(json.dumps({"question": "你好", "answer": "很好"}, ensure_ascii=False) + "\n" for _ in range(9)).encode()
                     + b'{"question": "a\xff", "answer": "b"}\n', Comes(9, 0, 1, "bytes that are not")),
    "zero_bytes_in_a_line": (lines(LINE.replace("Me", "M\x00e"), GOOD), Comes(2, 1)),
    "zero_bytes_escaped": (lines('{"question": "a\\u0000", "answer": "b"}'), Comes(1, 1)),
    "zero_bytes_at_the_end": (lines(GOOD, GOOD) + b"\x00" * 40, Comes(2, 0, 1)),
    "zero_bytes_in_a_table": (TABLE.encode() + b"a\x00,b\n", Comes(1)),
    "half_a_character_escaped": (lines('{"question": "a\\ud83d", "answer": "b"}'), Comes(1, 1)),
    "two_halves_escaped": (lines('{"question": "\\ud83e\\udd89", "answer": "b"}'), Comes(1)),
    "right_to_left_marks": (lines({"question": "\u202ewho\u202c \u200fא", "answer": "\u2067me\u2069"}), Comes(1)),
    "carriage_returns": (lines(GOOD, GOOD).replace(b"\n", b"\r\n"), Comes(2)),
    "line_separators_inside": (lines({"question": "a\u2028b\x85", "answer": "c\u2029"}), Comes(1)),
    # turns
    "null_turn": (lines({"messages": [None, *PAIR]}), Comes(0, 0, 1, "messages.1 is not a record")),
    "empty_turn": (lines({"messages": [{}, *PAIR]}), Comes(0, 0, 1, "has the role")),
    "null_content": (lines(talk(("user", None), ("assistant", "b"))), Comes(0, 0, 1, "question in turn 1 is empty")),
    "empty_last_answer": (lines(talk(("user", "a"), ("assistant", ""))), Comes(0, 0, 1, "answer in turn 2 is empty")),
    "two_users_in_a_row": (lines(talk(("user", "a"), ("user", "b"), ("assistant", "c"))), Comes(1, 1, 0, "in a row were joined")),
    "two_assistants_in_a_row": (lines(talk(("user", "a"), ("assistant", "b"), ("assistant", "c"))), Comes(1, 1, 0, "joined")),
    "assistant_first": (lines(talk(("assistant", "Hi!"), ("user", "a"), ("assistant", "b"))), Comes(1, 1, 0, "before the first question")),
    "user_last": (lines(talk(("user", "a"), ("assistant", "b"), ("user", "c"))), Comes(1, 1, 0, "without an answer")),
    "unknown_role": (lines(talk(("user", "a"), ("wizard", "b"))), Comes(0, 0, 1, "messages.2 has the role 'wizard'")),
    "role_is_a_number": (lines({"messages": [{"role": 1, "content": "a"}]}), Comes(0, 0, 1, "has the role 1")),
    "system_in_the_middle": (lines(talk(("user", "a"), ("system", "x"), ("assistant", "b"))), Comes(0, 0, 1, "middle")),
    "only_a_system_text": (lines(talk(("system", "x"))), Comes(0, 0, 1, "no answer")),
    "numbers_for_texts": (lines({"question": 12, "answer": 3.5}), Comes(1, 1, 0, "a number was taken as text")),
    "nested_lists": (lines({"question": [["a"]], "answer": "b"}), Comes(0, 0, 1, "question is a list")),
    "object_for_a_text": (lines({"question": {"de": "a"}, "answer": "b"}), Comes(0, 0, 1, "question is not text")),
    "turns_as_one_string": (lines({"messages": "user: a assistant: b"}), Comes(0, 0, 1, "messages cannot be read")),
    "turns_of_turns": (lines({"messages": [PAIR]}), Comes(0, 0, 1, "messages.1 is not a record")),
    "mixed_schemas": (lines(GOOD, {"instruction": "a", "output": "b"}, {"messages": PAIR}, {"text": "A document."}, {"x": 1}),
                      Comes(4, 0, 1, "none of its fields is known: x")),
    "placeholders_left_in": (lines({"question": "Who?", "answer": "I am {{name}}."}), Comes(1)),
    "no_known_field": (lines({"foo": 1, "bar": 2}), Comes(0, 0, 1, "foo, bar")),
    # tables
    "quotes_and_line_breaks": ((TABLE + '"a ""b"", c\nd","e\nf"\ng,h\n').encode(), Comes(2)),
    "quote_opened_and_not_closed": ((TABLE + 'a,"b\nc,d\ne,f\n').encode(), Comes(2, 0, 1, "opened and not closed")),
    "text_behind_a_quote": ((TABLE + '"a"b,c\nd,e\n').encode(), Comes(1, 0, 1, "quote")),
    "too_many_cells": ((TABLE + "a,b,c\nd,e\n").encode(), Comes(1, 0, 1, "3 cells and there are 2 columns")),
    "too_few_cells": ((TABLE + "a\nd,e\n").encode(), Comes(1, 0, 1, "field answer is empty")),
    "blank_lines": ((TABLE + "\n\na,b\n\n").encode(), Comes(1)),
    "doubled_column": (b"question,answer,answer\na,b,c\n", Comes(refused="answer of file stands there twice")),
    "unknown_columns": (b"colour,size\nred,3\nblue,4\n", Comes(refused="No column of file is known")),
    "header_only": (TABLE.encode(), Comes(0, 0, 0)),
    "excel_sep_line": (b"sep=;\nquestion;answer\na;b\n", Comes(1)),
    "hundred_thousand_columns": (lambda: (",".join(f"c{n}" for n in range(100_000)) + "\n" + "," * 99_999 + "\n").encode(),
                                 Comes(refused="No column of file is known")),
    "hundred_thousand_columns_two_known": (lambda: (TABLE.strip() + "".join(f",c{n}" for n in range(100_000)) + "\n"
                                                    + "a,b" + "," * 100_000 + "\n").encode(), Comes(1)),
    "hundred_thousand_fields": (lambda: lines({**{f"c{n}": n for n in range(100_000)}, **GOOD}, GOOD), Comes(2)),
    # other kinds of files
    "parquet_of_nested_types": (lambda: parquet({"messages": [[dict(turn, extra=None) for turn in PAIR]] * 2, "tags": [["a"], None],
                                                 "when": [1.5, None]}), Comes(2)),
    "parquet_with_null_rows": (lambda: parquet({"question": ["Who?", None], "answer": ["Me.", "You."]}),
                               Comes(1, 0, 1, "question is empty")),
    "parquet_with_a_text_that_is_none": (lambda: parquet({"question": ["Who?", "Which one?"], "answer": ["Me.", "You."]}).replace(
        b"Which one", b"Whi\xf3h one"), Comes(1, 0, 1, "cannot be read")),
    "parquet_cut_off": (lambda: parquet({"question": ["Who?"], "answer": ["Me."]})[:-20], Comes(refused="file cannot be read")),
    "web_page_saved_as_json": (b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>x</body></html>",
                               Comes(refused="web page, not data; its title is: 404 Not Found")),
    "zip": (zipped, Comes(refused="zip archive")),
    "gzip": (lambda: gzip.compress(LINE.encode()), Comes(refused="gzip")),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", Comes(refused="PDF")),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", Comes(refused="git-lfs")),
    "empty": (b"", Comes(refused="is empty")),
    "only_blanks": (b" \n\t\n", Comes(refused="is empty")),
    "only_a_bom": (b"\xef\xbb\xbf", Comes(refused="is empty")),
    "noise": (bytes(range(256)) * 40, Comes(refused="is not text")),
    "yaml_records": (b"- question: Who?\n  answer: Me.\n- question: a\n  answer: b\n", Comes(2)),
    "yaml_cycle": (b"- &a\n  question: Who?\n  answer: *a\n", Comes(refused="refers to itself")),
    "yaml_cyclic_list": (b"- &a [1, *a]\n- {question: a, answer: b}\n", Comes(refused="refers to itself")),
    "empty_lines_before_a_word": (b"x:" + b"\n" * 200_000 + b"y\n", Comes(2)),
    "empty_lines_in_a_talk": (lambda: lines({"text": "### Human: a" + "\n" * 50_000 + "b### Assistant: c"}, GOOD), Comes(2)),
    "yaml_merge_bomb": (("- &a0 {k: v}\n" + "".join(f"- &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))).encode(),
                        Comes(refused="unfolds without end")),
    "comments_of_a_page": (b"<!-- -->" * 4000 + b"x", Comes(1)),
    "titles_of_a_page": (b"<html>" + b"<title" * 40_000, Comes(refused="is a web page")),
    "yaml_bomb": (("- &a0 [x, x]\n" + "".join(f"- &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))).encode(),
                  Comes(refused="without end")),
    "one_line_of_50_mb": (lambda: lines({"question": "Who?", "answer": "x" * 50_000_000}, GOOD), Comes(2)),
    "one_broken_line_of_20_mb": (lambda: lines('{"question": "Who?", "answer": "' + "x" * 20_000_000, GOOD), Comes(1, 0, 1, "JSON")),
    "a_list_broken_early_and_long": (lambda: (f'[{LINE}, {{"question": "a" oops}}, ' + f"{LINE}, " * 40_000 + LINE + "]").encode(),
                                     Comes(40_002, 0, 1)),
    "a_list_with_many_breaks": (lambda: ("[" + f'{LINE}, {{"question": "a}}, {{"question" 1}}, ' * 300 + LINE + "]").encode(), Comes()),
    "prose": (b"Once upon a time, there was a king.\nHe had a daughter, and she was clever.\n", Comes(1)),
    "prose_in_documents": (b"One text.\n\nStill one.\n\n\n\nAnother text.\n\f A third.\n", Comes(3)),
    "prose_of_one_long_line": (lambda: b"word " * 100_000, Comes(3, 2, 0, "goes on in the next row")),
}
SECONDS = 20.0


def read(path: Path) -> tuple[object, list[dict]]:
    importing = Importing.of_file(path, Reading())
    rows = list(rows_of(importing.records, Reading(), importing.found))
    return importing.found, rows


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_is_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    content, comes = CASES[name]
    path = tmp_path / "file"
    path.write_bytes(content() if callable(content) else content)
    began = time.monotonic()
    if comes.refused:
        with pytest.raises(StudioError) as caught:
            read(path)
        assert comes.refused in str(caught.value.problem)
        for text in (caught.value.problem, caught.value.hint):
            assert "\n" not in str(text) and len(str(text)) < 400 and text.to("zh") != str(text)
        return
    found, rows = read(path)
    assert found.imported + found.repaired + found.rejected == found.read and len(rows) == found.rows
    if name == "a_list_with_many_breaks":  # what is between two breaks may go with them, but what stands alone is read
        assert found.rows >= 300 and found.rejected >= 300
        return
    assert (found.rows, found.repaired, found.rejected) == (comes.rows, comes.repaired, comes.rejected), (
        found.refusals[:3], found.repairs[:3])
    for note in [*found.refusals, *found.repairs]:
        assert str(note.place) and note.reason.to("zh") != str(note.reason) and len(str(note.reason)) < 400
    if comes.word:
        assert comes.word in str([*found.refusals, *found.repairs][0].reason)
    assert time.monotonic() - began < SECONDS
    assert all("\x00" not in json.dumps(row, ensure_ascii=False) for row in rows)


def test_texts_come_through_as_they_were(tmp_path: Path) -> None:
    """Of the files that are read, some by what they say: no letter is changed on the way."""
    expected = {"gbk_table": "你是谁呢？我想知道", "windows_1252": "Comment ça va ?", "utf_16_without_a_mark": "Who?",
                "quotes_and_line_breaks": 'a "b", c\nd', "two_halves_escaped": "🦉", "right_to_left_marks": "\u202ewho\u202c \u200fא",
                "line_breaks_inside_texts": "a\nb", "two_users_in_a_row": "a\nb", "line_separators_inside": "a\u2028b\x85"}
    for name, text in expected.items():
        path = tmp_path / name
        path.write_bytes(CASES[name][0])
        assert read(path)[1][0]["messages"][0]["content"] == text, name


def test_a_parquet_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(parquet({"question": ["x" * 4_000_000], "answer": ["Me."]}, "zstd"))
    assert len(read(path)[1]) == 1, "small enough as it is, however well it is packed"
    monkeypatch.setattr("core.data.records._ALWAYS_UNPACKED", 1_000_000)
    with pytest.raises(StudioError, match=r"1 rows of 40\d{5} bytes"):
        read(path)
    path.write_bytes(parquet({"question": ["Who?"] * 300_000, "answer": ["Me."] * 300_000}, "zstd"))
    monkeypatch.setattr("core.data.records._MOST_ROWS_PER_BYTE", 1)
    with pytest.raises(StudioError, match="300000 rows"):
        read(path)
