"""The process behind the chat page: `python -m core.chat.worker FOLDER`, FOLDER being a workspace's `cache/chat`.

Listens on the loopback address, answers whoever brings the token of `handle.json`, and streams JSON lines. One thread decodes; every
connection has its own. It ends by itself: when nobody asked for a while, when whoever started it is gone, when its handle or folder is
gone, and when a job needs the GPU it uses.

    POST /answer   a ChatRequest; lines as in core.chat.panes, the last one `{"event": "end"}`
    POST /cancel   {"id": request, "panes": [numbers] or null for all}
    GET  /state    what is loaded
    POST /quit     end now
"""

from __future__ import annotations

import argparse
import fcntl
import hmac
import json
import os
import queue
import secrets
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from core.chat.device import jobs_at_device
from core.chat.handle import HANDLE, Handle, remove_handle, write_handle
from core.chat.request import MOST_BYTES, MOST_MODELS, ChatRequest, read_request
from core.errors import StudioError
from core.jobs.process import ProcessIdentity
from core.redact import RedactedStream, redact
from core.words import Text
from core.workspace import Workspace, read_json

if TYPE_CHECKING:
    from core.chat.desk import Desk

IDLE_SECONDS = 600.0
MOST_WAITING = 128
MOST_OF_ONE_STUDENT = 2  # the others of a class wait for the same process
_WATCH_SECONDS = 1.0
_CLIENT_SECONDS = 30.0  # a client that reads nothing for so long is gone


class Unforeseen(StudioError):
    code = "internal"


@dataclass(frozen=True)
class Terms:
    """How a chat process works.

    Attributes:
        idle_seconds: without a question for so long, it ends; 0 means never.
        parent: it ends with this process.
        quantization: how base models are held: `none`, `nf4` or `int8`.
        most_waiting: requests that may wait for their turn.
    """

    idle_seconds: float = IDLE_SECONDS
    parent: ProcessIdentity | None = None
    quantization: str = "none"
    most_waiting: int = MOST_WAITING


class ChatServer(ThreadingHTTPServer):
    """Serves one workspace: all requests that can, decode in one batch."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, terms: Terms) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.workspace = Workspace.open(folder.parent.parent)
        self.terms = terms
        self.token = secrets.token_urlsafe(32)
        self.last_asked = time.monotonic()
        self.cancelled: dict[str, set[int]] = {}
        self._books = threading.Lock()
        self._imports = threading.Lock()
        self._work = threading.Event()
        self._asking = 0
        self._of_member: Counter[str] = Counter()
        self._desk: Desk | None = None

    def desk(self) -> Desk:
        """The models; torch is imported at the first need, after the port is open."""
        with self._imports:  # transformers loads its parts late, and two threads at it get half a module
            from core.chat.desk import Desk

            if self._desk is None:
                self._desk = Desk(self.workspace, self.terms.quantization, most_waiting=self.terms.most_waiting)
        return self._desk

    def state(self) -> dict[str, Any]:
        loaded = self._desk.loaded if self._desk else None
        return {"loaded": loaded.names() if loaded else [], "loads": loaded.loads if loaded else 0, "waiting": self._asking,
                "kept_bytes": loaded.kept_bytes() if loaded else 0, "folders": loaded.folders() if loaded else []}

    def decode(self) -> None:
        """Decode for whoever asks, for ever."""
        desk = self.desk()
        device, looked = self._device(), time.monotonic()
        while True:
            if time.monotonic() - looked > _WATCH_SECONDS:
                device, looked = self._device(), time.monotonic()
                if desk.loaded.kept_bytes() and jobs_at_device(self.workspace):
                    desk.loaded.forget_kept()
            try:
                is_busy = desk.turn(device)
            except Exception as error:  # whatever happened, the process stays up and those who wait hear of it
                traceback.print_exc()
                desk.fail_all(self.unforeseen(error))
                is_busy = False
            if not is_busy:
                self._work.wait(_WATCH_SECONDS)
                self._work.clear()

    def events(self, request: ChatRequest, client: socket.socket) -> Iterator[dict[str, Any]]:
        """Wait for the turn, then answer; ends when the client is gone.

        Raises:
            StudioError: too many wait already.
        """
        with self._books:
            if request.member and self._of_member[request.member] >= MOST_OF_ONE_STUDENT:
                raise StudioError("{count} of your questions wait for an answer already.", "Wait for them, or stop one.",
                                  count=MOST_OF_ONE_STUDENT)
            self._asking += 1
            self._of_member[request.member] += 1
        cancelled = self.cancelled.setdefault(request.id, set())
        asked = None
        try:
            desk = self.desk()
            asked = desk.prepare(request)
            asked.cancelled = cancelled
            if jobs_at_device(self.workspace) and self._device() == "cpu":
                yield {"event": "note", "pane": None, "text": Text("A job uses this machine, so answers come more slowly.").to_json()}
            desk.submit(asked)
            self._work.set()
            while True:
                try:
                    event = asked.outbox.get(timeout=_WATCH_SECONDS)
                except queue.Empty:
                    event = {"event": "waiting", "pane": None} if not asked.has_begun else {}
                if event is None or is_gone(client):
                    return
                if event:
                    yield event
        finally:
            if asked is not None:
                asked.has_left = True
            with self._books:
                self._asking -= 1
                self._of_member[request.member] -= 1
                self._of_member += Counter()  # forgets those at zero
            self.cancelled.pop(request.id, None)
            self.last_asked = time.monotonic()

    def unforeseen(self, error: Exception) -> StudioError:
        return Unforeseen("It ended with an error nobody foresaw: {kind}: {text}", "The last lines of its log tell more: {log}.",
                          kind=type(error).__name__, text=redact(str(error))[:300] or "-", log=self.folder / "log.txt")

    def _device(self) -> str:
        """The GPU unless a job needs it, else the processor."""
        from core.models.load import choose_device

        device = choose_device("auto")
        return "cpu" if device != "cpu" and jobs_at_device(self.workspace, "cuda") else device

    def cancel(self, request_id: str, panes: Any) -> bool:
        """Stop some panes of a request, or all of them; returns whether there is such a request."""
        known = self.cancelled.get(request_id)
        if known is not None:
            known.update(panes if isinstance(panes, list) else range(MOST_MODELS))
        return known is not None

    def watch(self) -> None:
        """End the process when there is no use for it any more."""
        while not self._is_useless():
            time.sleep(_WATCH_SECONDS)
        self.shutdown()

    def _is_useless(self) -> bool:
        try:
            if read_json(self.folder / HANDLE)["token"] != self.token:
                return True
        except (OSError, ValueError, KeyError):
            return True
        if self._asking:
            return False
        if self.terms.parent is not None and not self.terms.parent.is_alive():
            return True
        if self.terms.idle_seconds and time.monotonic() - self.last_asked > self.terms.idle_seconds:
            return True
        uses_gpu = self._desk is not None and self._desk.loaded.uses_gpu()
        return uses_gpu and bool(jobs_at_device(self.workspace, "cuda"))


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:
        if self._is_allowed() and self.path == "/state":
            self._send(200, self.server.state())
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        if not self._is_allowed():
            return self._send(403, {})
        try:
            data = self._read()
            if self.path == "/answer":
                return self._stream(read_request(data))
        except StudioError as error:
            return self._send(400, {"code": getattr(error, "code", ""), **error.to_json()})
        if self.path == "/cancel" and isinstance(data, dict):
            return self._send(200, {"known": self.server.cancel(str(data.get("id")), data.get("panes"))})
        if self.path == "/quit":
            threading.Thread(target=self.server.shutdown).start()
            return self._send(200, {})
        return self._send(404, {})

    def _is_allowed(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        return hmac.compare_digest(given, f"Bearer {self.server.token}".encode())

    def _read(self) -> Any:
        given = self.headers.get("Content-Length") or "0"
        length = int(given) if given.isascii() and given.isdecimal() else 0  # -1 would read without end
        if length > MOST_BYTES:
            self._swallow(length)
            raise StudioError("The text is too long to be sent: {size} MB, and {most} MB are the limit.", "Shorten it.",
                              size=round(length / 1e6, 1), most=round(MOST_BYTES / 1e6))
        try:
            return json.loads(self.rfile.read(length).decode("utf-8") or "{}")
        except ValueError as error:
            raise StudioError("The request cannot be read: {reason}.", "Send JSON in UTF-8.", reason=error) from error

    def _swallow(self, length: int) -> None:
        """Read and forget: a client that still sends would not see the answer."""
        for _ in range(min(length, 16 * MOST_BYTES) >> 16):
            if not self.rfile.read(1 << 16):
                return

    def _stream(self, request: ChatRequest) -> None:
        events = self._spoken(self.server.events(request, self.connection))
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.end_headers()
            for event in events:
                if is_gone(self.connection):
                    return
                self.wfile.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            pass  # the client has left; closing the events ends the decoding
        finally:
            events.close()

    def _spoken(self, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The events, an error as the last but one, and `end`."""
        try:
            yield from events
        except StudioError as error:
            yield {"event": "error", "pane": None, "code": getattr(error, "code", ""), **error.to_json()}
        except Exception as error:  # whatever happened, the process stays up and the client hears of it
            traceback.print_exc()
            yield {"event": "error", "pane": None, "code": "", **self.server.unforeseen(error).to_json()}
        yield {"event": "end", "pane": None}

    def _send(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what people ask is nobody's business, not even a log's."""


def is_gone(client: socket.socket) -> bool:
    """Whether the other side has closed its connection."""
    try:
        readable, _, _ = select.select([client], [], [], 0)
        return bool(readable) and client.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def serve(folder: Path, terms: Terms) -> int:
    """Serve until there is no use for it; returns the exit code. Ends at once when another process serves this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process serves this workspace already", flush=True)
            return 0
        server = ChatServer(folder, terms)
        write_handle(folder, Handle(port=server.server_port, token=server.token, process=ProcessIdentity.own()))
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        threading.Thread(target=server.watch, daemon=True).start()
        threading.Thread(target=server.decode, daemon=True).start()  # importing torch takes seconds: it begins now
        try:
            server.serve_forever(poll_interval=0.2)
        finally:
            remove_handle(folder, server.token)
            server.server_close()
    return 0


def _read_terms(arguments: argparse.Namespace) -> Terms:
    try:
        parent = ProcessIdentity.of(arguments.parent) if arguments.parent else None
    except psutil.NoSuchProcess:
        sys.exit("the process that started this one is gone already")
    return Terms(arguments.idle, parent, arguments.quantization, arguments.waiting)


if __name__ == "__main__":
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds without a question after which the process ends")
    parser.add_argument("--parent", type=int, default=0, help="the process ends with this one")
    parser.add_argument("--quantization", choices=["none", "nf4", "int8"], default="none", help="how base models are held")
    parser.add_argument("--waiting", type=int, default=MOST_WAITING, help="requests that may wait for their turn")
    arguments = parser.parse_args()
    status = serve(arguments.folder.resolve(), _read_terms(arguments))
    sys.stdout.flush()
    os._exit(status)  # a thread may still be inside a matrix product; an orderly end would wait for it or crash
