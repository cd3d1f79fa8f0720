"""The HTTP side of `sweetspot serve`: tokens, models, chat completions. Decodes nothing itself, so it always answers. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from core.chat.request import MOST_BYTES
from core.errors import StudioError
from core.serve.errors import ApiError
from core.serve.schema import Completion, read_completion
from core.serve.shapes import Reply

Event = dict[str, Any]
# A body larger than this is not even read to its end before it is refused.
_MOST_SWALLOWED_BYTES = 16 * MOST_BYTES
_NOBODY = Response(status_code=499)  # the client has left; nobody reads this

_log = logging.getLogger("sweetspot.serve")


class Source(Protocol):
    """Where answers come from."""

    def events(self, request: dict[str, Any]) -> AsyncIterator[Event]: ...


class TokenGate:
    """Lets only those through who bring the token; `/health` is open."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                wrong = "The API key is wrong." if given else "An API key is needed: `Authorization: Bearer KEY`."
                error = ApiError(401, f"{wrong} `sweetspot serve` shows it when it starts.", code="invalid_api_key")
                return await _respond(error)(scope, receive, send)
        return await self.app(scope, receive, send)


def build_app(models: Mapping[str, int], source: Source, token: str) -> FastAPI:
    """The application.

    Args:
        models: names that are served, and since when they exist in seconds since the epoch.
        token: what clients must bring as their API key.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TokenGate, token=token)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, created) for name, created in models.items()]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        _check_model(models, name)
        return _model(name, models[name])

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        asked = read_completion(await _read_body(request))
        _check_model(models, asked.model)
        return await _answer(request, asked, source)

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return _respond(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        known = "GET /v1/models and POST /v1/chat/completions are served here."
        return _respond(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}. {known}", code="unknown_url"))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _respond(_unforeseen(error))

    return app


def _unforeseen(error: Exception) -> ApiError:
    _log.error("%s: %s", type(error).__name__, error, exc_info=error)
    return ApiError(500, f"It ended with an error nobody foresaw: {type(error).__name__}.", "server_error", "internal_error")


def _no_process(error: StudioError) -> ApiError:
    """The chat process did not start, or was lost."""
    return ApiError.from_event({"code": "worker_lost", **error.to_json()})


def _respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "sweetspot"}


def _check_model(models: Mapping[str, int], name: str) -> None:
    if name not in models:
        raise ApiError(404, f"The model `{name[:200]}` is not served here; these are: {', '.join(models)}.", code="model_not_found",
                       param="model")


async def _read_body(request: Request) -> bytes:
    """The body, if it is not too large.

    Raises:
        ApiError: 413. A client that still sends would not see the answer, so the rest is read and forgotten first.
    """
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BYTES:
            body += part
        elif size > _MOST_SWALLOWED_BYTES:
            break
    if size > MOST_BYTES:
        raise ApiError(413, f"The request has {size / 1e6:.1f} MB; {MOST_BYTES / 1e6:.0f} MB are the limit.", code="request_too_large")
    return bytes(body)


async def _answer(request: Request, asked: Completion, source: Source) -> Response:
    """Wait until the answer begins, so that what can go wrong before that has its own status."""
    reply, events = Reply(asked), _while_connected(request, source.events(asked.to_request()))
    try:
        async for event in events:
            _take(reply, event)
            if reply.said.proof and asked.stream:
                return StreamingResponse(_stream(reply, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return JSONResponse(reply.whole())
    except ClientGone:
        return _NOBODY
    except StudioError as error:
        raise _no_process(error) from error


def _take(reply: Reply, event: Event) -> None:
    if event["event"] == "error":
        raise ApiError.from_event(event)
    if event["event"] == "note" or event["pane"] is not None:
        reply.take(event)


async def _stream(reply: Reply, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """Server-sent events. What goes wrong now comes as a last one with `error`: the status has been sent."""
    try:
        yield _sent(reply.first_chunk())
        async for event in events:
            _take(reply, event)
            if event["event"] == "text":
                yield _sent(reply.text_chunk(event))
        for chunk in reply.last_chunks():
            yield _sent(chunk)
        yield b"data: [DONE]\n\n"
    except ClientGone:
        return
    except ApiError as error:
        yield _sent(error.body())
    except StudioError as error:
        yield _sent(_no_process(error).body())
    except Exception as error:  # the status is gone: say it in the stream
        yield _sent(_unforeseen(error).body())


def _sent(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


async def _while_connected(request: Request, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    """The events, until the client hangs up; then their source is closed, which ends the decoding.

    Raises:
        ClientGone: it has.
    """
    gone = asyncio.create_task(_wait_until_gone(request))
    try:
        while True:
            following = asyncio.ensure_future(anext(events))
            try:
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.wait({following})
            if following.cancelled() or gone.done():
                raise ClientGone
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        gone.cancel()
        with contextlib.suppress(AttributeError, RuntimeError):
            await events.aclose()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
