"""The OpenAI API's protocol: shapes, refusals, tokens, streaming, and what happens when something breaks. The models are a script."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest
from fastapi.testclient import TestClient

from core.chat.history import ContextExceeded
from core.chat.panes import QueueFull, error_event
from core.chat.proof import Proof
from core.chat.request import MOST_BYTES, read_request
from core.errors import StudioError
from core.serve.app import build_app
from core.serve.listen import listen, open_port
from core.serve.relay import Relay, WorkerLost

TOKEN = "a-token-for-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PROOF = Proof(model="alex", resolved="run@16", base="smollm2", step=16, weights="a" * 64, base_weights="b" * 64, prompt="c" * 16,
              prompt_tokens=34)


class Script:
    """Answers by a list of events; remembers what was asked, and whether it was closed before its end."""

    def __init__(self, *events: dict | Exception) -> None:
        self.script = events or answer("I am", " Alex.")
        self.asked: list[dict] = []
        self.was_closed = False

    async def events(self, request: dict) -> AsyncIterator[dict]:
        self.asked.append(request)
        read_request(request)  # what the chat process would refuse must not come this far
        self.was_closed = True
        for event in self.script:
            if isinstance(event, Exception):
                raise event
            yield event
            await asyncio.sleep(0)
        self.was_closed = False


def answer(*pieces: str, reason: str = "end", **changes) -> list[dict]:
    return [{"event": "loading", "pane": None}, {"event": "start", "pane": 0, "proof": PROOF.model_dump()},
            *({"event": "text", "pane": 0, "text": piece, **changes} for piece in pieces),
            {"event": "done", "pane": 0, "reason": reason, "tokens": 5, "reused": 20, "seconds": 1.0, "tokens_per_second": 5.0}]


def served(source: Script) -> TestClient:
    return TestClient(build_app({"alex": 1_700_000_000, "run@16": 1_700_000_001}, source, TOKEN), headers=HEADERS,
                      raise_server_exceptions=False)


def ask(source: Script, **changes):
    body = {"model": "alex", "messages": [{"role": "user", "content": "Who are you?"}], **changes}
    return served(source).post("/v1/chat/completions", json=body)


def events_of(response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"] + ([{"done": True}] if lines[-1] == "[DONE]" else [])


def test_an_answer_has_openais_shape_and_the_proof():
    data = ask(Script(), seed=7).json()
    assert data["object"] == "chat.completion" and data["id"].startswith("chatcmpl-") and data["model"] == "alex"
    assert data["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "I am Alex.", "refusal": None}, "logprobs": None,
                                "finish_reason": "stop"}]
    assert data["usage"] == {"prompt_tokens": 34, "completion_tokens": 5, "total_tokens": 39,
                             "prompt_tokens_details": {"cached_tokens": 20}}
    assert data["sweetspot"] == {"proof": PROOF.model_dump(), "reason": "end", "seed": 7, "notes": []}
    assert data["system_fingerprint"] == "bbbbbbbbbbbb-aaaaaaaaaaaa"


def test_a_stream_says_the_same_in_pieces():
    response = ask(Script(), stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, usage, done = events_of(response)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "I am Alex."
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and {chunk["usage"] for chunk in [*chunks, last]} == {None}
    assert last["choices"][0]["finish_reason"] == "stop" and last["sweetspot"]["proof"]["step"] == 16
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 39 and done == {"done": True}
    assert len({chunk["id"] for chunk in [*chunks, last, usage]}) == 1
    assert all("usage" not in chunk for chunk in events_of(ask(Script(), stream=True))[:-1])


def test_settings_reach_the_models_and_defaults_are_those_of_the_terminal():
    source = Script()
    ask(source, temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.2, seed=3, max_tokens=9, stop="x", frequency_penalty=0.5,
        presence_penalty=-0.5, logprobs=True, top_logprobs=4, user="me", store=False, tools=[], tool_choice="none", n=1,
        response_format={"type": "text"})
    ask(source, max_completion_tokens=8, stop=["a", "b"], messages=[{"role": "developer", "content": "Be kind."}, {
        "role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]}])
    full, plain = source.asked
    assert full["sampled"] == {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3, "max_new_tokens": 9, "repetition_penalty": 1.2}
    assert (full["stop"], full["frequency_penalty"], full["presence_penalty"], full["top_logprobs"]) == (["x"], 0.5, -0.5, 4)
    assert full["overflow"] == "refuse" and full["is_limit_given"]
    assert plain["sampled"] | {"seed": 0} == {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_new_tokens": 8,
                                              "repetition_penalty": 1.0}
    assert plain["stop"] == ["a", "b"] and plain["top_logprobs"] is None
    assert plain["histories"] == [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One\ntwo"}]]
    open_end = Script()
    first, second = (ask(open_end).json()["sweetspot"]["seed"] for _ in range(2))
    assert not open_end.asked[0]["is_limit_given"] and first != second == open_end.asked[1]["sampled"]["seed"]


def test_logprobs_come_whole_and_in_pieces():
    tokens = [{"token": "I", "logprob": -0.1, "top": [{"token": "I", "logprob": -0.1}, {"token": "\ufffd", "logprob": -3.0}]}]
    events = answer("I", tokens=tokens)
    expected = [{"token": "I", "logprob": -0.1, "bytes": [73], "top_logprobs": [
        {"token": "I", "logprob": -0.1, "bytes": [73]}, {"token": "\ufffd", "logprob": -3.0, "bytes": None}]}]
    assert ask(Script(*events), logprobs=True).json()["choices"][0]["logprobs"]["content"] == expected
    pieces = [chunk["choices"][0]["logprobs"] for chunk in events_of(ask(Script(*events), logprobs=True, stream=True))[:-1]]
    assert [piece["content"] for piece in pieces if piece] == [expected]


@pytest.mark.parametrize(("reason", "finish"), [("end", "stop"), ("length", "length"), ("loop", "length")])
def test_why_an_answer_ended(reason, finish):
    data = ask(Script(*answer("I", reason=reason))).json()
    assert data["choices"][0]["finish_reason"] == finish and data["sweetspot"]["reason"] == reason
    assert data["sweetspot"]["notes"] == (["It began to repeat itself, so it was stopped."] if reason == "loop" else [])


@pytest.mark.parametrize(("changes", "param", "code"), [
    ({"n": 2}, "n", "unsupported_value"), ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"), ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"temperature": 2.5}, "temperature", "invalid_value"), ({"top_p": 0}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"), ({"frequency_penalty": 3}, "frequency_penalty", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"), ({"logprobs": True, "top_logprobs": 99}, "top_logprobs", "invalid_value"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages", "invalid_value"), ({"stop": ["x"] * 17}, "stop", "invalid_value"),
    ({"messages": [{"role": "assistant", "content": "I"}]}, "messages", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "I"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "invalid_value"),
    ({"model": None}, "model", "invalid_value"),
])
def test_what_cannot_be_done_is_refused_by_name(changes, param, code):
    source = Script()
    response = ask(source, **changes)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert error["message"] and source.asked == []


@pytest.mark.parametrize("body", [
    b"\xff\xfe{", b"{", b"[1]", b'"x"', b"", b'{"model": "alex", "messages": [{"role": "user", "content": "a\\ud800"}]}', b"[" * 100_000])
def test_bytes_that_are_no_request(body):
    response = served(Script()).post("/v1/chat/completions", content=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_no_web_page_may_ask():
    """A page on another origin has no token, gets no leave to send one, and cannot read what it is refused."""
    client = served(Script())
    page = {"Origin": "http://evil.example", "Host": "evil.example:8000", "Authorization": ""}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for response in (client.options("/v1/chat/completions", headers=page | asking), client.get("/v1/models", headers=page)):
        assert response.status_code == 401 and not any(name.startswith("access-control") for name in response.headers)


def test_who_has_no_token_gets_nothing():
    client = served(Script())
    for path in ("/v1/models", "/v1/chat/completions", "/nowhere"):
        for header in ("", "Bearer x", TOKEN, "Bearer é".encode()):
            response = client.request("POST" if "chat" in path else "GET", path, headers={"Authorization": header})
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert TestClient(client.app).get("/health").json() == {"status": "ok"}
    assert TestClient(client.app).get("/openapi.json").status_code == 401


def test_models_are_listed_and_others_unknown():
    client = served(Script())
    models = client.get("/v1/models").json()
    assert [entry["id"] for entry in models["data"]] == ["alex", "run@16"] and models["object"] == "list"
    assert client.get("/v1/models/run@16").json()["created"] == 1_700_000_001
    for response in (client.get("/v1/models/nobody"), ask(Script(), model="nobody")):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "model_not_found") and "alex" in error["message"]
    assert client.get("/v1/embeddings").json()["error"]["code"] == "unknown_url"
    assert client.get("/v1/chat/completions").status_code == 405


def test_a_body_that_is_too_large_is_refused_unread():
    source = Script()
    response = ask(source, messages=[{"role": "user", "content": "x" * (MOST_BYTES + 1_000_000)}])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (413, "request_too_large") and "5.0 MB" in error["message"] and source.asked == []


FULL = QueueFull("{count} requests wait for an answer already.", "Ask again in a moment.", count=128)
LONG = ContextExceeded("This model's context holds {context} tokens, but {total} were asked for: {prompt} in the messages, {answer} "
                       "for the answer.", "Shorten the messages or the answer.", context=512, total=600, prompt=500, answer=100)
LOST = WorkerLost("The chat process ended without a word: it was killed, or the machine ran out of memory.", "Ask again.")


@pytest.mark.parametrize(("failure", "status", "code"), [
    (error_event(None, FULL), 429, "queue_full"), (error_event(0, LONG), 400, "context_length_exceeded"), (LOST, 503, "worker_lost"),
    (error_event(0, StudioError("The model is cut off.", "Copy it."), "model_unavailable"), 503, "model_unavailable"),
    (StudioError("The chat process did not start.", "Look."), 503, "worker_lost"), (KeyError("x"), 500, "internal_error")])
def test_failures_before_the_first_word_have_their_status(failure, status, code):
    for stream in (False, True):
        response = ask(Script({"event": "loading", "pane": None}, failure), stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert ("Retry-After" in response.headers) == (status in (429, 503))
    if code == "context_length_exceeded":
        assert all(number in response.json()["error"]["message"] for number in ("512", "600", "500", "100"))


def test_failures_in_the_middle_come_as_an_event():
    for failure in (LOST, error_event(0, LOST), KeyError("x")):
        *_, last = events_of(ask(Script(*answer("I")[:3], failure), stream=True))
        assert last["error"]["type"] == "server_error"
        assert ask(Script(*answer("I")[:3], failure)).status_code >= 500


def test_a_client_that_hangs_up_closes_its_source():
    """Straight through ASGI: the client goes after the second piece, and what is left is not decoded."""
    source = Script(*answer(*["x"] * 1000))

    async def talk(stream: bool) -> list[dict]:
        body = json.dumps({"model": "alex", "messages": [{"role": "user", "content": "Go"}], "stream": stream}).encode()
        received = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict] = []

        async def receive() -> dict:
            if received:
                return received.pop(0)
            while len(sent) < 3 if stream else not source.asked:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/chat/completions",
                 "query_string": b"", "root_path": "", "scheme": "http", "headers": [(b"authorization", f"Bearer {TOKEN}".encode())]}
        await asyncio.wait_for(build_app({"alex": 1}, source, TOKEN)(scope, receive, send), 10)
        return sent

    for stream in (True, False):
        source.was_closed, source.asked = False, []
        sent = asyncio.run(talk(stream))
        assert source.was_closed and len(sent) < 200


def test_the_same_matrices_under_another_alpha_are_another_model() -> None:
    half = PROOF.model_copy(update={"model": "mild", "alpha": 16.0})
    assert not half.same_weights(PROOF.model_copy(update={"alpha": 32.0}))
    assert half.same_weights(PROOF.model_copy(update={"alpha": 32.0, "strength": 0.5})), "half of 32 is 16"


def test_it_can_be_called_from_the_moment_it_says_it_is_ready(workspace) -> None:
    listening = open_port(0)

    def knock() -> None:
        socket.create_connection(listening.getsockname(), timeout=5).close()
        raise InterruptedError("enough was seen")

    with listening, pytest.raises(InterruptedError):
        listen(workspace, Relay(workspace, workspace.cache / "serve-1", []), [], listening, "token", knock)
