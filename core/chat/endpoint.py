"""A model behind an OpenAI-compatible endpoint as one more pane: vLLM, llama.cpp, Ollama, another Sweetspot. No torch.

    endpoint:http://127.0.0.1:8000/v1#model

The key comes from the environment (SWEETSPOT_ENDPOINT_KEY) and goes to addresses of this machine, and to the one that
SWEETSPOT_ENDPOINT_URL names; never anywhere else.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from core.chat.proof import Proof
from core.chat.request import Sampled
from core.errors import StudioError
from core.redact import redact
from core.words import Text

PREFIX = "endpoint:"
KEY_VARIABLE, URL_VARIABLE = "SWEETSPOT_ENDPOINT_KEY", "SWEETSPOT_ENDPOINT_URL"
CONNECT_SECONDS = 10.0
# Between two pieces of an answer; a busy server may read a long prompt first.
SILENCE_SECONDS = 120.0
_MOST_ERROR_BYTES = 20_000
_MOST_LINE_BYTES = 4_000_000
_MOST_ANSWER_BYTES = 64_000_000  # with all the JSON around its pieces

Event = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """Where it is: `url` without a slash at its end, and what the model is called there."""

    url: str
    model: str


def is_endpoint(reference: str) -> bool:
    return reference.startswith(PREFIX)


def read_endpoint(reference: str) -> Endpoint:
    """Take a reference apart.

    Raises:
        StudioError: it names no http(s) address, or no model; or a password stands in it.
    """
    url, _, model = reference.removeprefix(PREFIX).partition("#")
    hint = "Write it as endpoint:http://127.0.0.1:8000/v1#model."
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        raise StudioError("{reference} is no address of an endpoint.", hint, reference=reference[:200]) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right or not url.isascii() or not url.isprintable():
        raise StudioError("{reference} is no address of an endpoint.", hint, reference=reference[:200])
    if parts.username or parts.password or parts.query:
        raise StudioError("A key must not stand in the address of an endpoint.",
                          "Put it into the environment as SWEETSPOT_ENDPOINT_KEY.")
    if not model.strip():
        raise StudioError("The endpoint {url} is named without a model.", hint, url=url[:200])
    if os.environ.get("SWEETSPOT_GATE") and url.rstrip("/") != os.environ.get(URL_VARIABLE, "").rstrip("/"):
        raise StudioError("A shared studio asks only the endpoint that its owner has named.",
                          "Its owner can set SWEETSPOT_ENDPOINT_URL before the start.")  # else visitors reach this machine's network
    return Endpoint(url.rstrip("/"), model.strip())


def is_own_or_named(endpoint: Endpoint, variable: str = URL_VARIABLE) -> bool:
    """Whether it is on this machine, or the one that the environment names: a link alone must not send a question anywhere else."""
    named = os.environ.get(variable, "").rstrip("/")
    if named and endpoint.url == named:
        return True
    host = urlsplit(endpoint.url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def answer_at_endpoint(pane: int, reference: str, messages: Sequence[dict[str, str]], sampled: Sampled, stop: Sequence[str] = (),
                       is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """The events of `core.chat.panes` for an answer that is made elsewhere; whatever goes wrong is an error event."""
    began, tokens, reason, is_proved = time.monotonic(), 0, "stopped", False
    try:
        endpoint = read_endpoint(reference)
        yield {"event": "start", "pane": pane, "proof": None}
        for chunk in _chunks(endpoint, _body(endpoint, messages, sampled, stop)):
            if is_cancelled():
                break
            if proof := _own_proof(reference, chunk):
                is_proved = True
                yield {"event": "start", "pane": pane, "proof": proof.model_dump()}
            for choice in chunk.get("choices") or []:
                if isinstance(piece := (choice.get("delta") or {}).get("content"), str) and piece:
                    tokens += 1
                    yield {"event": "text", "pane": pane, "text": piece}
                if choice.get("finish_reason"):
                    reason = "length" if choice["finish_reason"] == "length" else "end"
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if (chunk.get("sweetspot") or {}).get("reason") == "loop":
                reason = "loop"
    except StudioError as error:
        yield {"event": "error", "pane": pane, "code": "", **error.to_json()}
        return
    if not is_proved:
        yield {"event": "note", "pane": pane, "text": Text(
            "Another server answered; who really answered there cannot be proved from here.").to_json()}
    seconds = time.monotonic() - began
    yield {"event": "done", "pane": pane, "reason": reason, "tokens": tokens, "reused": 0, "seconds": round(seconds, 3),
           "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0}


def _own_proof(reference: str, chunk: dict[str, Any]) -> Proof | None:
    """Another Sweetspot says who answered; that is its word, not ours."""
    try:
        return Proof.model_validate(chunk["sweetspot"]["proof"]).model_copy(update={"model": reference})
    except (KeyError, TypeError, ValidationError):
        return None


def _body(endpoint: Endpoint, messages: Sequence[dict[str, str]], sampled: Sampled, stop: Sequence[str]) -> bytes:
    """Only what was asked for beyond the defaults is sent of the settings that OpenAI's own API lacks: strict servers refuse them."""
    body: dict[str, Any] = {"model": endpoint.model, "messages": list(messages), "stream": True, "temperature": sampled.temperature,
                            "top_p": sampled.top_p, "seed": sampled.seed, "max_tokens": sampled.max_new_tokens,
                            "stream_options": {"include_usage": True}}
    if sampled.top_k:
        body["top_k"] = sampled.top_k
    if sampled.repetition_penalty != 1.0:
        body["repetition_penalty"] = sampled.repetition_penalty
    if stop:
        body["stop"] = list(stop)
    return json.dumps(body).encode()


def _chunks(endpoint: Endpoint, body: bytes) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer.

    Raises:
        StudioError: nobody listens there, it refuses, it falls silent, or what it says cannot be read.
    """
    connection = _connect(endpoint)
    try:
        connection.request("POST", urlsplit(endpoint.url).path + "/chat/completions", body, _headers(endpoint))
        if connection.sock is not None:
            connection.sock.settimeout(SILENCE_SECONDS)
        response = connection.getresponse()
        if response.status != 200:
            raise _refusal(endpoint, response)
        left = _MOST_ANSWER_BYTES
        while line := response.readline(_MOST_LINE_BYTES):
            left -= len(line)
            if left < 0:
                raise StudioError("{url} answers without end.", "Look at its own log; no model says that much.", url=endpoint.url)
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield _read_chunk(endpoint, data)
        raise StudioError("{url} broke its answer off.", "Ask again; its own log may tell why.", url=endpoint.url)
    except TimeoutError as error:
        raise StudioError("{url} said nothing for {seconds} seconds.", "Look whether it is overloaded, then ask again.",
                          url=endpoint.url, seconds=round(SILENCE_SECONDS)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(endpoint, error) from error
    finally:
        connection.close()


def _connect(endpoint: Endpoint) -> http.client.HTTPConnection:
    """Asked directly, whatever proxy the environment names."""
    parts = urlsplit(endpoint.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_SECONDS)
    try:
        connection.connect()
    except TimeoutError as error:
        raise StudioError("Nobody answers at {url} within {seconds} seconds.", "Look whether the server runs and the address is right.",
                          url=endpoint.url, seconds=round(CONNECT_SECONDS)) from error
    except OSError as error:
        raise _unreachable(endpoint, error) from error
    return connection


def _unreachable(endpoint: Endpoint, error: Exception) -> StudioError:
    reason = "its name is not known" if isinstance(error, socket.gaierror) else getattr(error, "strerror", None) or type(error).__name__
    return StudioError("{url} cannot be asked: {reason}.", "Look whether the server runs and the address is right.",
                       url=endpoint.url, reason=reason)


def _headers(endpoint: Endpoint) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    key = os.environ.get(KEY_VARIABLE)
    return headers | {"Authorization": f"Bearer {key}"} if key and is_own_or_named(endpoint) else headers


def _refusal(endpoint: Endpoint, response: http.client.HTTPResponse) -> StudioError:
    try:
        error = json.loads(response.read(_MOST_ERROR_BYTES))["error"]
        said = redact(str(error["message"] if isinstance(error, dict) else error))[:300]  # it may quote the key
    except (ValueError, KeyError, TypeError):
        said = response.reason or "-"
    if response.status in (401, 403):
        return StudioError("{url} wants another key ({status}).",
                           "Put it into the environment as SWEETSPOT_ENDPOINT_KEY; for a server that is not on this machine, name its "
                           "address there too, as SWEETSPOT_ENDPOINT_URL.", url=endpoint.url, status=response.status)
    if response.status == 404:
        return StudioError("{url} knows no model {model}: {said}", "Its list is at {url}/models.", url=endpoint.url, model=endpoint.model,
                           said=said)
    return StudioError("{url} refuses ({status}): {said}", "Change what it names, then ask again.", url=endpoint.url,
                       status=response.status, said=said)


def _read_chunk(endpoint: Endpoint, data: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
        choices = chunk.get("choices") or []
        parts = [*choices, *(choice.get("delta") or {} for choice in choices), chunk.get("usage") or {}, chunk.get("sweetspot") or {}]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("no object")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StudioError("What {url} says cannot be read.", "It must speak the OpenAI chat API with streaming.",
                          url=endpoint.url) from error
    if chunk.get("error"):
        said = chunk["error"].get("message", "-") if isinstance(chunk["error"], dict) else str(chunk["error"])
        raise StudioError("{url} broke off: {said}", "Ask again; its own log may tell why.", url=endpoint.url,
                          said=redact(str(said))[:300])
    return chunk

