"""A model behind an endpoint as a pane: its answer, its refusals, its silence; and where the key goes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.chat import endpoint
from core.chat.client import ask
from core.chat.endpoint import Endpoint, answer_at_endpoint, is_own_or_named, read_endpoint
from core.chat.request import Sampled
from core.chat.talk import Said
from core.errors import StudioError
from core.words import Text

QUESTION = [{"role": "user", "content": "Who are you?"}]


def chunk(content: str | None = None, finish: str | None = None, **more) -> bytes:
    data = {"choices": [{"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Foreign(ThreadingHTTPServer):
    """A server that says what it was told to say, and remembers what it heard."""

    daemon_threads = True
    status, parts, silence = 200, [chunk("I am"), chunk(" big.", "stop"), DONE], None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[dict] = []
        self.keys: list[str | None] = []

    @property
    def reference(self) -> str:
        return f"endpoint:http://127.0.0.1:{self.server_port}/v1#big"


class _Handler(BaseHTTPRequestHandler):
    server: Foreign

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))) | {"path": self.path})
        self.server.keys.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.end_headers()
        for part in self.server.parts:
            self.wfile.write(part)
            self.wfile.flush()
        if self.server.silence:
            self.server.silence.wait(10)

    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def foreign(monkeypatch) -> Iterator[Foreign]:
    monkeypatch.delenv(endpoint.KEY_VARIABLE, raising=False)
    server = Foreign()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    if server.silence:
        server.silence.set()
    server.shutdown()
    server.server_close()


def answered(reference: str, **changes) -> Said:
    said = Said(model=reference)
    for event in answer_at_endpoint(0, reference, QUESTION, Sampled(**changes), ["stop here"]):
        said.take(event)
    return said


def problem(said: Said) -> str:
    assert said.reason == "error"
    return str(Text.from_json(said.problem or {}))


def test_it_answers_in_pieces_and_nothing_is_claimed_about_who_it_was(foreign, monkeypatch):
    said = answered(foreign.reference, temperature=0.5, top_k=7, max_new_tokens=9)
    assert (said.text, said.reason, said.tokens, said.proof) == ("I am big.", "end", 2, None)
    assert "cannot be proved" in str(Text.from_json(said.notes[0]))
    heard = foreign.heard[0]
    assert heard["path"] == "/v1/chat/completions" and heard["model"] == "big" and heard["messages"] == QUESTION and heard["stream"]
    assert (heard["temperature"], heard["top_k"], heard["max_tokens"], heard["stop"]) == (0.5, 7, 9, ["stop here"])
    assert "repetition_penalty" not in heard and foreign.keys == [None]
    foreign.parts = [chunk("I", "length"), b": a comment\n\n", chunk(usage={"completion_tokens": 40}), DONE]
    cut = answered(foreign.reference)
    assert (cut.reason, cut.tokens) == ("length", 40)


def test_the_key_stays_on_this_machine_unless_the_environment_names_another(foreign, monkeypatch):
    monkeypatch.setenv(endpoint.KEY_VARIABLE, "secret")
    answered(foreign.reference)
    assert foreign.keys == ["Bearer secret"]
    assert not is_own_or_named(Endpoint("https://api.example/v1", "m")) and not is_own_or_named(Endpoint("http://127.0.0.1.example", "m"))
    assert "Authorization" not in endpoint._headers(Endpoint("https://api.example/v1", "m"))
    monkeypatch.setenv(endpoint.URL_VARIABLE, "https://api.example/v1/")
    assert endpoint._headers(Endpoint("https://api.example/v1", "m"))["Authorization"] == "Bearer secret"
    assert "Authorization" not in endpoint._headers(Endpoint("https://api.example", "m"))


@pytest.mark.parametrize(("status", "body", "expected"), [
    (401, b'{"error": {"message": "no"}}', "wants another key (401)"),
    (404, b'{"error": {"message": "no such model"}}', "knows no model big: no such model"),
    (400, b'{"error": {"message": "too long"}}', "refuses (400): too long"), (429, b'{"error": "full"}', "refuses (429): full"),
    (500, b"<html>", "refuses (500): Internal Server Error"), (200, chunk("I"), "broke its answer off"),
    (200, b"data: {\n\n", "cannot be read"), (200, b"data: [1]\n\n", "cannot be read"),
    (200, b'data: {"choices": [1]}\n\n', "cannot be read"),
    (200, b'data: {"choices": 7}\n\n', "cannot be read"), (200, b'data: {"choices": [{"delta": "x"}]}\n\n', "cannot be read"),
    (200, b'data: {"error": {"message": "gone"}}\n\n', "broke off: gone"), (200, b"", "broke its answer off"),
])
def test_whatever_goes_wrong_is_a_sentence_in_its_pane(foreign, status, body, expected):
    foreign.status, foreign.parts = status, [body]
    assert expected in problem(answered(foreign.reference))


def test_an_endpoint_that_quotes_the_key_shows_it_to_nobody(foreign, monkeypatch):
    monkeypatch.setenv(endpoint.KEY_VARIABLE, "a-key-of-the-owner")
    for status, body in ((400, b'{"error": {"message": "bad key a-key-of-the-owner"}}'),
                         (200, b'data: {"error": {"message": "bad key a-key-of-the-owner"}}\n\n')):
        foreign.status, foreign.parts = status, [body]
        said = problem(answered(foreign.reference))
        assert "a-key-of-the-owner" not in said and "bad key ***" in said


def test_an_answer_without_end_is_cut(foreign, monkeypatch):
    monkeypatch.setattr(endpoint, "_MOST_ANSWER_BYTES", 2000)
    foreign.parts = [chunk("I") for _ in range(1000)]
    said = answered(foreign.reference)
    assert "answers without end" in problem(said) and len(said.text) < 100


def test_nobody_there_and_nothing_said(foreign, monkeypatch):
    assert "cannot be asked: Connection refused" in problem(answered("endpoint:http://127.0.0.1:9/v1#m"))
    monkeypatch.setattr(endpoint, "SILENCE_SECONDS", 0.2)
    foreign.parts, foreign.silence = [chunk("I")], threading.Event()
    silent = answered(foreign.reference)
    assert "said nothing for 0 seconds" in problem(silent) and silent.text == "I", "what was said stays"


@pytest.mark.parametrize("reference", [
    "endpoint:", "endpoint:127.0.0.1:8000/v1#m", "endpoint:http://127.0.0.1:8000/v1", "endpoint:http://x:99999/v1#m", "endpoint:ftp://x/v1#m",
    "endpoint:http://user:key@x/v1#m", "endpoint:http://x/v1?key=1#m", "endpoint:http://x/v1\r\nHost: y#m", "endpoint:file:///etc/passwd#m",
])
def test_addresses_that_are_none(reference):
    with pytest.raises(StudioError):
        read_endpoint(reference)
    assert read_endpoint("endpoint:http://127.0.0.1:8000/v1/#org/name") == Endpoint("http://127.0.0.1:8000/v1", "org/name")


def test_it_stands_beside_others_and_stops_alone(workspace, foreign):
    """Two endpoints side by side need no process of ours; one is stopped, the other goes on."""
    foreign.silence, foreign.parts = threading.Event(), [chunk("I") for _ in range(5)]
    other = Foreign()
    threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
    answers = ask(workspace, [foreign.reference, other.reference, "endpoint:http://127.0.0.1:9/v1#m"], [QUESTION] * 3, Sampled())
    while len(answers.panes[0].text) < 5 or None in (answers.panes[1].reason, answers.panes[2].reason):
        answers.wait(0.05)
    assert answers.is_active and answers.panes[1].text == "I am big." and "Connection refused" in problem(answers.panes[2])
    answers.cancel(0)
    foreign.silence.set()
    while answers.wait(0.05):
        pass
    assert answers.panes[0].reason in ("stopped", "error") and answers.panes[1].reason == "end"
    other.shutdown()
    other.server_close()
