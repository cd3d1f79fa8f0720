"""The user's own probes: their files, their checks, the stronger model, rows held out, and a quick choice."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from core.data.hold_out import hold_out_rows
from core.data.library import load_dataset, save_dataset
from core.errors import StudioError
from core.judge.checks import find_fault, passes
from core.judge.endpoint import Endpoint
from core.judge.probe_files import read_probe_file
from core.judge.scoring import classify
from core.judge.taught import Taught


@pytest.mark.parametrize(("check", "answer", "outcome"), [
    ({"contains": "paris"}, "It is Paris.", True), ({"contains": ["Rome", "巴黎"]}, "是巴黎。", True),
    ({"contains": "Rome"}, "Paris", False),
    ({"equals": "42"}, " 42 ", True), ({"equals": "42"}, "It is 42", False),
    ({"regex": r"^\d{4}-\d{2}$"}, "2026-01", True), ({"regex": r"^\d{4}-\d{2}$"}, "in 2026-01", False),
    ({"json": True}, '[1, 2]', True), ({"json": True}, "{'a': 1}", False), ({"json": ["a"]}, '```json\n{"a": 1}\n```', True),
    ({"json": ["a", "b"]}, '{"a": 1}', False), ({"json": ["a"]}, "[]", False), ({"json": True}, "[" * 100_000, False),
    ({"judge": "Polite?", "url": "http://x", "model": "m"}, "Yes", None),
])
def test_checks(check, answer, outcome):
    assert find_fault(check) is None
    assert passes(check, answer) is outcome


def test_a_pattern_that_never_ends_is_cut_short():
    began = time.monotonic()
    assert passes({"regex": r"^(a|a)*$"}, "a" * 40 + "b") in (False, None)
    assert passes({"regex": r"(?:a+)+\d(?:a+)+b"}, "a" * 3000) in (False, None)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("check", "problem"), [
    ("Paris", "names exactly one"), ({}, "names exactly one"), ({"contains": "a", "json": True}, "names exactly one"),
    ({"contains": []}, "`contains` wants"), ({"contains": ""}, "`contains` wants"), ({"equals": 42}, "`equals` wants"),
    ({"regex": "(a"}, r"no regular expression"), ({"regex": ""}, "`regex` wants"), ({"json": False}, "`json` wants"),
    ({"judge": "ok?", "url": "ftp://x", "model": "m"}, "needs the url"), ({"judge": " "}, "`judge` wants"),
    ({"equals": "a", "strict": True}, "has no field strict")])
def test_a_check_that_cannot_be_used_is_said(check, problem):
    fault = find_fault(check)
    assert problem in str(fault) and str(fault.hint) and fault.problem.to("zh") != str(fault.problem)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.yaml"])
def test_a_file_of_probes(tmp_path, name):
    rows = [{"question": " What is 6 times 7? ", "check": {"contains": "42"}}, {"question": "你好", "id": "greet"},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}],
             "expect": "bye"}]
    path = tmp_path / name
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\ufeff" + "\n\n".join(lines) if name.endswith("l") and "json" in name else "\n".join(f"- {line}" for line in lines))
    probes = read_probe_file(path)
    assert [probe["group"] for probe in probes] == ["own"] * 3
    assert probes[0]["messages"] == [{"role": "user", "content": "What is 6 times 7?"}] and probes[0]["check"] == {"contains": "42"}
    assert (probes[1]["id"], probes[1]["lang"]) == ("greet", "zh") and "check" not in probes[1]
    assert len(probes[2]["messages"]) == 3 and probes[2]["expect"] == ["bye"]


@pytest.mark.parametrize(("text", "problem"), [
    ('{"question": "a"}\n{"question": ', "mine.jsonl, row 2: this is no JSON"),
    ('{"question": "a"}\n{"question": "b", "chek": 1}', "mine.jsonl, row 2: there is no field chek"),
    ('{"question": "a", "check": {"regex": "("}}', "mine.jsonl, row 1: The pattern ( is no regular expression"),
    ('{"check": {"equals": "x"}}', "row 1: a probe has either a question or messages"),
    ('["a"]', "row 1: a probe is an object"), ('{"question": 7}', "row 1: question cannot be read"),
    ('{"question": "  "}', "row 1: the last turn must be the user's"),
    ('{"question": "a", "id": "x"}\n{"question": "b", "id": "x"}', "row 2: the id x stands in an earlier row"),
    ('{"question": "a", "id": "../x"}', "the id '../x' cannot be used"), ("", "holds no probe"),
    (json.dumps({"question": "x" * 2001}), "has 2001 characters")])
def test_a_row_that_cannot_be_used_is_named(tmp_path, text, problem):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(StudioError) as caught:
        read_probe_file(path)
    assert problem in str(caught.value) and str(caught.value.hint)
    assert caught.value.problem.to("zh") != str(caught.value.problem)


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.yaml").write_text("a: 1")
    (tmp_path / "c.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, problem in (("a.yaml", "no YAML"), ("b.yaml", "no list of probes"), ("c.jsonl", "not in UTF-8"), ("d.jsonl", "no file")):
        with pytest.raises(StudioError, match=problem):
            read_probe_file(tmp_path / name)


# --- a stronger model ---


class Judge(BaseHTTPRequestHandler):
    says, seen = "Yes.", []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Judge.seen.append((self.path, self.headers.get("Authorization"), body["model"]))
        if Judge.says is None:
            time.sleep(1)
        if Judge.says == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": Judge.says}}]}).encode() if Judge.says else b"{")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Judge) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/v1"
        found.shutdown()


def test_a_stronger_model_is_asked_and_its_failure_is_no_verdict(server, monkeypatch):
    monkeypatch.setenv("SWEETSPOT_JUDGE_KEY", "secret")
    check = {"judge": "Is it polite?", "url": server, "model": "big"}
    for says, outcome in (("Yes.", True), ("no", False), ("perhaps", None), ("elsewhere", None), ("", None)):
        Judge.says = says
        assert Endpoint(timeout=2).passes(check, "Hi?", "Hello") is outcome
    assert Judge.seen[0] == ("/v1/chat/completions", "Bearer secret", "big")


def test_the_judge_s_key_and_a_visitor_s_probes_go_nowhere_else(monkeypatch):
    """Whoever wrote a file of probes must not get the key of who judges by it, nor reach the network of a shared studio."""
    sent: list[str | None] = []

    def take(self, request, data=None, timeout=None):
        sent.append(request.get_header("Authorization"))
        raise OSError

    check = {"judge": "Is it?", "url": "https://evil.example/v1", "model": "m"}
    monkeypatch.setenv("SWEETSPOT_JUDGE_KEY", "secret")
    with monkeypatch.context() as patched:
        patched.setattr("urllib.request.OpenerDirector.open", take)
        assert Endpoint().passes(check, "a", "b") is None
        patched.setenv("SWEETSPOT_JUDGE_URL", "https://evil.example/v1/")
        assert Endpoint().passes(check, "a", "b") is None
        assert sent == [None, "Bearer secret"]
        patched.setenv("SWEETSPOT_GATE", "class")
        gated = Endpoint()
        assert gated.passes({**check, "url": "http://127.0.0.1:9/v1"}, "a", "b") is None and "owner has named" in gated.problem
        gated.passes(check, "a", "b")
        assert len(sent) == 3


def test_a_dead_or_slow_endpoint_is_given_up_after_two_tries(server):
    Judge.says = None
    endpoint = Endpoint(timeout=0.05)
    check = {"judge": "ok?", "url": server, "model": "big"}
    began = time.monotonic()
    assert [endpoint.passes(check, "a", "b") for _ in range(40)] == [None] * 40
    assert time.monotonic() - began < 3 and endpoint.problem


# --- rows held out, and a quick look ---


def conversation(number: int, question: str | None = None) -> dict:
    return {"messages": [{"role": "user", "content": question or f"What is {number} plus 1?"},
                         {"role": "assistant", "content": f"{number + 1}"}], "group": "task", "lang": "en"}


def test_held_out_rows_are_in_no_training(workspace):
    rows = [conversation(number) for number in range(20)] + [conversation(5), {"text": "A document.", "group": "task", "lang": "en"}]
    save_dataset(workspace, "sums", rows, "test")
    outcome = hold_out_rows(workspace, "sums", 4)
    dataset = load_dataset(workspace, "sums")
    held = [probe for probe in dataset.probes() if probe["group"] == "held_out"]
    asked = {probe["messages"][-1]["content"] for probe in held}
    assert len(held) == 4 == outcome["held_out"] and all(probe["answer"] for probe in held)
    assert not asked & {row["messages"][0]["content"] for row in dataset.rows() if "messages" in row}
    assert any("text" in row for row in dataset.rows())
    assert outcome["rows"] == dataset.card.rows == 22 - 4 - outcome["left_out"]
    assert {probe["group"] for probe in dataset.probes()} == {"held_out", "near", "general"}
    assert dataset.card.probes == len(dataset.probes())
    with pytest.raises(StudioError, match="held out already"):
        hold_out_rows(workspace, "sums", 4)


def test_a_dataset_that_is_too_small_keeps_its_rows(workspace):
    save_dataset(workspace, "few", [conversation(number) for number in range(5)], "test")
    with pytest.raises(StudioError, match="more than half"):
        hold_out_rows(workspace, "few", 3)


def test_a_form_that_the_base_keeps_to_counts_among_what_is_known():
    probe = {"id": "g", "group": "general", "lang": "en", "messages": [], "form": {"json": True}}
    taught = Taught("task", (), {}, frozenset())
    assert classify(probe, "no", "[1]", taught) == "lost" and classify(probe, "[2]", "[1]", taught) == "changed"
    assert classify(probe, "no", "none", taught) == "changed"
