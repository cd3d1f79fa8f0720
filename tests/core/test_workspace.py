"""Files survive crashes, full disks and hostile names."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import workspace as module
from core.errors import StudioError
from core.workspace import (
    Workspace,
    append_jsonl,
    check_name,
    fill_folder,
    read_json,
    read_jsonl,
    slug,
    write_json,
    write_jsonl,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(number: int):
    def replace(*_: object) -> None:
        raise OSError(number, os.strerror(number))
    return replace


def test_a_workspace_makes_its_folders(workspace):
    assert names_in(workspace.root) == ["cache", "datasets", "jobs", "models", "recipes", "runs", "version.json"]
    assert workspace.free_bytes() > 0


def test_the_path_given_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEETSPOT_HOME", str(tmp_path / "from-environment"))
    assert Workspace.open(tmp_path / "given").root == tmp_path / "given"
    assert Workspace.open().root == tmp_path / "from-environment"


@pytest.mark.parametrize("place", ["{tmp}/file", "{tmp}/file/inside", "/proc/none", "~nobody-of-this-name/x", "zero\0byte"])
def test_a_place_that_cannot_be_a_workspace_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudioError, match="cannot be written") as caught:
        Workspace.open(place.format(tmp=tmp_path))
    assert "SWEETSPOT_HOME" in str(caught.value.hint)


def test_a_write_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_json(path, {"name": "小明", "n": 1})
    assert read_json(path) == {"name": "小明", "n": 1} and "小明" in path.read_text(encoding="utf-8")
    monkeypatch.setattr(module.os, "replace", fail_with(errno.EIO))
    with pytest.raises(OSError):
        write_json(path, {"n": 2})
    assert read_json(path)["n"] == 1 and names_in(tmp_path) == ["state.json"]


def test_many_writers_of_one_file_do_not_take_each_others_half(tmp_path):
    path, faults = tmp_path / "x.json", []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                write_json(path, {"number": number, "fill": "x" * 5000})
                assert len(read_json(path)["fill"]) == 5000
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and names_in(tmp_path) == ["x.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_costs_nothing_old(tmp_path, monkeypatch, number):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"n": 1}])
    monkeypatch.setattr(module.os, "replace", fail_with(number))
    with pytest.raises(StudioError, match="The disk is full") as caught:
        write_jsonl(path, [{"n": 2}])
    assert "Free some space" in str(caught.value.hint)
    assert read_jsonl(path) == [{"n": 1}] and names_in(tmp_path) == ["rows.jsonl"]


def test_a_real_full_disk(tmp_path):
    """`/dev/full` refuses every byte, as a full disk does."""
    with pytest.raises(StudioError, match="The disk is full"):
        append_jsonl(Path("/dev/full"), {"n": 1})


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_place_that_must_not_be_written_is_a_sentence(tmp_path, monkeypatch, number):
    monkeypatch.setattr(module.os, "replace", fail_with(number))
    with pytest.raises(StudioError, match="x.json cannot be written"):
        write_json(tmp_path / "x.json", {})
    with pytest.raises(StudioError, match="cannot be written"), fill_folder(tmp_path / "folder"):
        pass
    assert names_in(tmp_path) == []


def test_a_half_last_line_waits_and_the_next_writer_begins_a_new_one(tmp_path):
    path = tmp_path / "events.jsonl"
    append_jsonl(path, {"n": 1})
    with path.open("ab") as stream:
        stream.write(b'{"n": 2, "te')
    assert read_jsonl(path) == [{"n": 1}]
    append_jsonl(path, {"n": 3})
    append_jsonl(path, {"n": 4})
    assert read_jsonl(path) == [{"n": 1}, {"n": 3}, {"n": 4}]


def test_a_line_cut_inside_a_character_is_a_half_line_too(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_jsonl(path, {"text": "你好"})
    with path.open("ab") as stream:
        stream.write('{"text": "你'.encode()[:-1])
    assert read_jsonl(path) == [{"text": "你好"}]
    append_jsonl(path, {"text": "再见"})
    assert read_jsonl(path) == [{"text": "你好"}, {"text": "再见"}]


def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path):
    path, text = tmp_path / "rows.jsonl", "one\u2028two\u0085three\x0cfour\r\nfive"
    write_jsonl(path, [{"text": text}])
    append_jsonl(path, {"text": text})
    assert read_jsonl(path) == [{"text": text}] * 2
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "events.jsonl"
    program = ("import sys; from pathlib import Path; from core.workspace import append_jsonl\n"
               "for n in range(200): append_jsonl(Path(sys.argv[1]), {'who': sys.argv[2], 'n': n, 'fill': 'x' * 300})")
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), who], cwd=module.CHECKOUT) for who in "abc"]
    assert [child.wait() for child in children] == [0, 0, 0]
    records = read_jsonl(path)
    assert len(records) == 600
    assert all([r["n"] for r in records if r["who"] == who] == list(range(200)) for who in "abc")


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", ".hidden", "a..b", "Alex", "小明", "é", "a b",
                                  "x" * 81, "a\n", "-x", "~", "a\0b", "%2e%2e", "C:x"])
def test_a_name_that_leaves_the_workspace_or_would_not_travel_is_refused(name):
    with pytest.raises(StudioError, match="cannot be the name of a dataset") as caught:
        check_name(name, "dataset")
    suggested = str(caught.value.hint).rsplit(" ", 1)[1].removesuffix(".")
    assert check_name(suggested, "dataset") == suggested
    assert "数据集" in caught.value.problem.to("zh")


@pytest.mark.parametrize("name", ["a", "alex", "alex-2", "0", "a.b_c-d", "x" * 80])
def test_plain_names_pass(name):
    assert check_name(name, "dataset") == name


@given(st.text(max_size=200) | st.text(alphabet="a.-_B/ ", max_size=90))
def test_a_slug_is_empty_or_a_name(text):
    made = slug(text)
    assert made == "" or check_name(made, "dataset") == made


def test_slugs_stay_readable():
    assert [slug(text) for text in ("Alex's bot", "a...b", "  ", "小明", "../../etc")] == ["alex-s-bot", "a.b", "", "", "etc"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "alex"
    with pytest.raises(KeyError), fill_folder(target) as folder:
        write_text(folder / "weights", "half")
        assert not target.exists()
        raise KeyError
    assert names_in(tmp_path) == []
    with fill_folder(target) as folder:
        write_text(folder / "weights", "whole")
    assert names_in(tmp_path) == ["alex"] and (target / "weights").read_text() == "whole"


def test_a_folder_that_is_there_already_is_not_replaced(tmp_path):
    target = tmp_path / "alex"
    with pytest.raises(StudioError, match="exists already"), fill_folder(target) as mine:
        with fill_folder(target) as theirs:  # somebody else is faster
            write_text(theirs / "weights", "theirs")
        write_text(mine / "weights", "mine")
    assert (target / "weights").read_text() == "theirs" and names_in(tmp_path) == ["alex"]


def test_a_full_disk_leaves_no_half_folder(tmp_path):
    with pytest.raises(StudioError, match="The disk is full; .*alex was not written"), fill_folder(tmp_path / "alex") as folder:
        write_text(folder / "one", "1")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names_in(tmp_path) == []


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    child, zombie = (subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2))
    child.wait()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent has not taken notice
    for pid in (child.pid, zombie.pid, os.getpid()):
        (tmp_path / f".alex.{pid}-0a1b2c3d.partial").mkdir()
    with fill_folder(tmp_path / "alex"):
        pass
    zombie.wait()
    assert names_in(tmp_path) == [f".alex.{os.getpid()}-0a1b2c3d.partial", "alex"]


def test_json_lines_are_what_they_say(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"a": "ü"}, [1]])
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()] == [{"a": "ü"}, [1]]
