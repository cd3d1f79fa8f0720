"""The gate before a shared studio: no page, no media, no upload and no websocket without a session. It stands before Streamlit.

What is let through without one: `/_stcore/health`, which says "ok", and the gate's own pages: `/sign-in`, `/sign-out`.
Its decisions are made by `core.access`; this is the part that speaks HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from core.access.sessions import Visitor
from core.errors import StudioError
from studio.gate_pages import Notice, code_page, sign_in_page, sign_out_page
from studio.visitors import Door, cookie_name, door

Scope, Message = MutableMapping[str, Any], MutableMapping[str, Any]
HEALTH, SIGN_IN, SIGN_OUT = "/_stcore/health", "/sign-in", "/sign-out"
_MOST_FORM_BYTES = 4096
# How soon a page that is open hears that its session has ended.
_LOOK_SECONDS = 15.0
_POLICY_VIOLATION = 1008
_SAFE_HEADERS = {b"x-frame-options": b"SAMEORIGIN", b"x-content-type-options": b"nosniff", b"referrer-policy": b"same-origin"}
# The gate's own pages need nothing but their own style.
_GATE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


class Gate:
    """ASGI middleware: looks at every request and every websocket before Streamlit sees it."""

    def __init__(self, app: Callable, the_door: Door | None = None) -> None:
        self.app, self._door = app, the_door

    @property
    def door(self) -> Door:
        return self._door or door()

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Callable, send: Callable) -> None:
        request = Request(scope, receive)
        response = await self._answer(request)
        await (response or self.app)(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """The gate's own answer; None when the studio shall answer."""
        if not self.door.knows_host(request.headers.get("host")):
            return PlainTextResponse("This server has another name. Start it with --host NAME to allow this one.\n", status_code=400)
        path = request.scope["path"]  # not request.url, which is put together from the Host header
        if path == SIGN_IN and request.method in ("GET", "HEAD"):
            return self._page(request)
        if path == SIGN_IN and request.method == "POST":
            return await self._sign_in(request)
        if path == SIGN_OUT and request.method == "POST":
            return self._sign_out(request)
        if path == HEALTH and request.method in ("GET", "HEAD"):
            return None
        visitor = self._visitor(request.cookies)
        if visitor is None:
            is_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
            wanted = f"{path}?{request.url.query}" if request.url.query else path
            return (RedirectResponse(f"{SIGN_IN}?next={quote(wanted, safe='')}", status_code=303, headers={"Cache-Control": "no-store"})
                    if is_page else PlainTextResponse("Sign in first.\n", status_code=403))
        if path == SIGN_OUT:
            return _own_page(sign_out_page(_language(request, "/")))
        if request.method != "GET" or "text/html" in request.headers.get("accept", ""):
            self.door.sessions.touch(request.cookies[cookie_name()])
        return None

    def _visitor(self, cookies: dict[str, str]) -> Visitor | None:
        return self.door.sessions.visitor(cookies.get(cookie_name()))

    def _page(self, request: Request, notice: Notice | None = None, status: int = 200, typed: dict[str, str] | None = None) -> Response:
        typed = typed or {}
        wanted = _local_path(typed.get("next") or request.query_params.get("next", "/"))
        language = _language(request, wanted)
        html = sign_in_page(language, is_class=self.door.room is not None, needs_code=self.door.needs_code, wanted=wanted,
                            notice=notice, code=typed.get("code") or request.query_params.get("code", ""), name=typed.get("name", ""))
        return _own_page(html, status)

    async def _sign_in(self, request: Request) -> Response:
        if not _same_origin(request):
            return PlainTextResponse("This form was sent by another site.\n", status_code=403)
        typed = await _read_form(request)
        if typed is None:
            return PlainTextResponse("This is not the form of the sign-in page.\n", status_code=400)
        address = request.client.host if request.client else ""
        is_code = self.door.is_code(typed)
        if (wait := self.door.guesses.take(address, is_code)) > 0:
            return self._page(request, Notice("gate.wait", seconds=f"{max(1, round(wait)):d}"), 429, typed)
        try:
            # Comparing takes 50 ms of a processor: in a thread, so that the pages of others go on.
            entered = await anyio.to_thread.run_sync(self.door.enter, typed)
        except StudioError as error:  # the code was right, something else was not
            self.door.guesses.was_right(address, is_code)
            return self._page(request, Notice(error=error), 400, typed)
        if entered is None:
            return self._page(request, Notice("gate.wrong"), 403, typed)
        self.door.guesses.was_right(address, is_code)
        wanted = _local_path(typed.get("next", "/"))
        language = _language(request, wanted)
        response = (_own_page(code_page(language, entered.name, entered.new_code, wanted)) if entered.new_code
                    else RedirectResponse(wanted, status_code=303))
        response.set_cookie(cookie_name(), entered.token, max_age=int(self.door.sessions.absolute_seconds), path="/",
                            secure=request.url.scheme == "https", httponly=True, samesite="lax")
        return response

    def _sign_out(self, request: Request) -> Response:
        if not _same_origin(request):
            return PlainTextResponse("This form was sent by another site.\n", status_code=403)
        if token := request.cookies.get(cookie_name()):
            self.door.sessions.sign_out(token)
        response = RedirectResponse(SIGN_IN, status_code=303)
        response.delete_cookie(cookie_name(), path="/")
        return response

    async def _websocket(self, scope: Scope, receive: Callable, send: Callable) -> None:
        request = Request({**scope, "type": "http", "method": "GET"})
        token = request.cookies.get(cookie_name())
        # Streamlit itself would take every port of this machine for the same site, and the cookie comes along from all of them.
        is_ours = self.door.knows_host(request.headers.get("host")) and _same_origin(request)
        if not is_ours or self.door.sessions.visitor(token) is None:
            await _refuse(receive, send)
            return
        line = _Line(self.door, str(token), receive, send)
        try:
            await self.app(scope, line.receive, line.send)
        finally:
            line.hang_up()


class OwnPages:
    """ASGI middleware of a studio without a gate, which serves its own machine: other sites and other ports open no websocket to it.

    Streamlit itself would let every port of this machine in, and would ask a server outside for this machine's address to compare others.
    """

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] == "websocket" and not _same_origin(Request({**scope, "type": "http", "method": "GET"})):
            await _refuse(receive, send)
        else:
            await self.app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)


async def _refuse(receive: Callable, send: Callable) -> None:
    """Close a websocket before it is accepted: the browser sees 403."""
    await receive()
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})


class _Line:
    """One websocket; it is cut when its session ends, however busy or quiet it is."""

    def __init__(self, the_door: Door, token: str, receive: Callable, send: Callable) -> None:
        self._door, self._token, self._receive, self._send = the_door, token, receive, send
        self._pending: asyncio.Task | None = None
        self._is_cut = False

    async def receive(self) -> Message:
        while True:
            self._pending = self._pending or asyncio.ensure_future(self._receive())
            done, _ = await asyncio.wait({self._pending}, timeout=_LOOK_SECONDS)
            if self._door.sessions.visitor(self._token) is None:
                return await self._cut()
            if done:
                message = self._pending.result()
                self._pending = None
                if _is_by_hand(message):
                    self._door.sessions.touch(self._token)
                return message

    async def send(self, message: Message) -> None:
        if not self._is_cut:
            if message["type"] == "websocket.send" and self._door.sessions.visitor(self._token) is None:
                return  # what a page still had to say is no longer for these eyes
            await self._send(message)

    async def _cut(self) -> Message:
        self.hang_up()
        if not self._is_cut:
            self._is_cut = True
            with contextlib.suppress(Exception):  # the other side may be gone already
                await self._send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return {"type": "websocket.disconnect", "code": _POLICY_VIOLATION}

    def hang_up(self) -> None:
        if self._pending is not None:
            self._pending.cancel()


def _own_page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status, {"Content-Security-Policy": _GATE_POLICY, "Cache-Control": "no-store"})


def _is_by_hand(message: Message) -> bool:
    """Whether somebody did something: a live panel that draws itself anew every two seconds is no sign of life."""
    data = message.get("bytes")
    if not data:
        return False
    from google.protobuf.message import DecodeError
    from streamlit.proto.BackMsg_pb2 import BackMsg

    told = BackMsg()
    try:
        told.ParseFromString(data)
    except DecodeError:
        return False
    return told.WhichOneof("type") in ("rerun_script", "file_urls_request") and not told.rerun_script.is_auto_rerun


def _with_headers(send: Callable) -> Callable:
    """Add what keeps other sites from framing the studio and browsers from guessing types."""
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            known = {name.lower() for name, _ in headers}
            message = {**message, "headers": [*headers, *((name, value) for name, value in _SAFE_HEADERS.items() if name not in known)]}
        await send(message)
    return send_more


async def _read_form(request: Request) -> dict[str, str] | None:
    """The fields of a short form; None when it is too long or none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM_BYTES:
            return None
    try:
        return {key: values[0] for key, values in parse_qs(body.decode("utf-8"), max_num_fields=10).items()}
    except ValueError:
        return None


def _same_origin(request: Request) -> bool:
    """Whether a form or a websocket comes from our own page. Browsers name the origin of every POST and of every websocket."""
    origin = request.headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:  # such as http://[
        return False


def _local_path(wanted: str) -> str:
    """`wanted` when it is a page of this studio, else the first page: a link must not lead through here to elsewhere."""
    try:
        parts = urlsplit(wanted)
    except ValueError:  # such as //[
        return "/"
    is_local = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not parts.netloc and not parts.scheme
    is_page = not wanted.startswith((SIGN_IN, SIGN_OUT, "/_stcore", "/media"))
    return wanted if is_local and is_page and wanted.isprintable() and "\\" not in wanted else "/"


def _language(request: Request, wanted: str) -> str:
    asked = request.query_params.get("lang") or parse_qs(urlsplit(wanted).query).get("lang", [""])[0]
    if asked in ("en", "zh"):
        return asked
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
