"""Ask the chat process of a workspace, which is started when it is not there. No torch; used by the page.

`ask` returns at once; a thread collects what arrives, and whoever shows it looks whenever it likes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from core.chat.endpoint import answer_at_endpoint, is_endpoint
from core.chat.handle import Handle, read_handle, worker_folder
from core.chat.request import Sampled
from core.chat.talk import Said
from core.classroom.place import student_of
from core.errors import StudioError
from core.jobs.launch import worker_environment
from core.words import Text
from core.workspace import CHECKOUT, Workspace

Message = dict[str, str]

START_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
# Nobody has looked for so long: the page was left. Long enough for a slow redraw on a busy machine.
ABANDONED_SECONDS = 6.0

# Held so that a process that ended is collected at the next start instead of staying a zombie.
_children: list[subprocess.Popen[bytes]] = []
_starting = threading.Lock()


def find_worker(workspace: Workspace, folder: Path | None = None) -> Handle | None:
    """The running chat process, the studio's own or that of another folder; None when there is none."""
    for child in _children:
        child.poll()
    return read_handle(folder or worker_folder(workspace))


def ensure_worker(workspace: Workspace, folder: Path | None = None, options: Sequence[str] = ()) -> Handle:
    """The running chat process, or a new one once it listens. Two starts at a time end up with the same one.

    Args:
        folder: where it keeps its handle; without it, the studio's own.
        options: for `core.chat.worker`.

    Raises:
        StudioError: it did not come up.
    """
    with _starting:
        folder = folder or worker_folder(workspace)
        handle = find_worker(workspace, folder)
        if handle is not None:
            return handle
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        child = _start(folder, options)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (handle := find_worker(workspace, folder)) is not None:
                return handle
            if child.poll() not in (None, 0):  # 0: another one has the lock and will write the handle
                break
            time.sleep(0.05)
    raise StudioError("The chat process did not start.", "The last lines of its log tell why: {log}.", log=folder / "log.txt")


def _start(folder: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    _children[:] = [child for child in _children if child.poll() is None]
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", "core.chat.worker", str(folder), "--parent", str(os.getpid()), *options],
                                 cwd=CHECKOUT, env=worker_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                 start_new_session=True)
    _children.append(child)
    return child


def end_worker(workspace: Workspace, grace_seconds: float = 10.0, folder: Path | None = None) -> None:
    """End the chat process, if there is one, and wait until it is gone: its memory is back then, the device's too."""
    handle = find_worker(workspace, folder)
    if handle is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(handle.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while handle.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if handle.process.is_alive():
            os.kill(handle.process.pid, signal.SIGKILL)
    find_worker(workspace, folder)


class Answers:
    """The answers to one question as they arrive.

    Attributes:
        panes: one entry per model; they grow while `is_active`.
        stage: `starting`, `waiting` for others, `loading`, `answering`, `ended`.
        notes: sentences about all panes, as `Text.to_json()`.
    """

    def __init__(self, workspace: Workspace, models: Sequence[str], histories: Sequence[Sequence[Message]], sampled: Sampled) -> None:
        self.panes = [Said(model=model) for model in models]
        self.stage = "starting"
        self.notes: list[dict[str, Any]] = []
        self._workspace = workspace
        self._sampled = sampled
        self._histories = [list(history) for history in histories]
        self._local = [number for number, model in enumerate(models) if not is_endpoint(model)]
        self._request = uuid.uuid4().hex
        self._handle: Handle | None = None
        self._socket: socket.socket | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._cancelled: set[int] = set()
        self._going = 0
        self._looked = time.monotonic()

    def start(self) -> Answers:
        """Begin to collect, in the background."""
        remote = [number for number in range(len(self.panes)) if number not in self._local]
        works = ([self._collect] if self._local else []) + [partial(self._collect_endpoint, number) for number in remote]
        self._going = len(works)
        for work in (*works, self._guard):
            threading.Thread(target=work, daemon=True).start()
        return self

    @property
    def is_active(self) -> bool:
        return self.stage != "ended"

    def wait(self, seconds: float) -> bool:
        """Wait until something changed, at most `seconds`; returns whether it still goes on. Looking is a sign of life."""
        self._looked = time.monotonic()
        with self._changed:
            if self.is_active:
                self._changed.wait(seconds)
        return self.is_active

    def cancel(self, pane: int | None = None) -> None:
        """Stop one pane, or all; what they have said stays. Others go on."""
        if pane is None and self.stage != "answering":
            return self.close()
        chosen = set(range(len(self.panes))) if pane is None else {pane}
        self._cancelled |= chosen
        mine = [place for place, number in enumerate(self._local) if number in chosen]
        if self._handle is None or not mine:
            return None
        with contextlib.suppress(OSError, http.client.HTTPException):
            call(self._handle, "POST", "/cancel", {"id": self._request, "panes": mine})
        return None

    def close(self) -> None:
        """Hang up; the process stops decoding within a token."""
        self._closed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _guard(self) -> None:
        while self.is_active:
            if time.monotonic() - self._looked > ABANDONED_SECONDS:
                self.close()
                return
            time.sleep(0.5)

    def _collect(self) -> None:
        try:
            if not self._read_events() and not self._closed:
                self._fail(Text("The chat process ended without a word: it was killed, or the machine ran out of memory."),
                           Text("Ask again; it starts anew. Its log is {log}.", log=str(worker_folder(self._workspace) / "log.txt")))
        except StudioError as error:
            self._fail(error.problem, error.hint)
        finally:
            self._end(self._local)

    def _collect_endpoint(self, number: int) -> None:
        """The answer of a model behind an endpoint: asked from here, no process of ours is needed for it."""
        try:
            for event in answer_at_endpoint(number, self.panes[number].model, self._histories[number], self._sampled,
                                            is_cancelled=lambda: self._closed or number in self._cancelled):
                self.panes[number].take(event)
                self._set_stage("answering")
        finally:
            self._end([number])

    def _end(self, numbers: Sequence[int]) -> None:
        """These panes are done; the last ones to be end it all."""
        for number in numbers:
            self.panes[number].reason = self.panes[number].reason or "stopped"
        with self._changed:
            self._going -= 1
            self.stage = self.stage if self._going else "ended"
            self._changed.notify_all()

    def _read_events(self) -> bool:
        """Read until the end; returns whether the process said that it was the end."""
        response = self._open()
        if response is None or self._closed:
            return False
        if response.status != 200:
            error = json.loads(response.read() or b"{}")
            if "problem" in error:
                self._fail(Text.from_json(error["problem"]), Text.from_json(error["hint"]))
            return "problem" in error
        try:
            for line in response:
                event = json.loads(line)
                if event["event"] == "end":
                    return True
                self._take(event)
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # the connection broke, or was closed here
        return False

    def _open(self) -> http.client.HTTPResponse | None:
        """Send the question; a process that is just ending gets a successor. None when it was closed meanwhile."""
        for attempt in range(3):
            self._handle = ensure_worker(self._workspace)
            if self._closed:
                return None
            connection = http.client.HTTPConnection("127.0.0.1", self._handle.port, timeout=_CONNECT_SECONDS)
            try:
                connection.request("POST", "/answer", self._body(), _headers(self._handle))
                self._socket = connection.sock
                self._socket.settimeout(None)  # loading a large model takes its time; a dead process hangs up
                return connection.getresponse()
            except (OSError, http.client.HTTPException):
                time.sleep(0.3 * (attempt + 1))
        raise StudioError("The chat process does not answer.", "Ask again; its log is {log}.",
                          log=worker_folder(self._workspace) / "log.txt")

    def _body(self) -> bytes:
        models, histories = [self.panes[number].model for number in self._local], [self._histories[number] for number in self._local]
        return json.dumps({"id": self._request, "member": student_of(self._workspace), "models": models,
                           "sampled": self._sampled.model_dump(), "histories": histories}).encode()

    def _take(self, event: dict[str, Any]) -> None:
        kind, number = event["event"], event["pane"]
        if kind in ("loading", "waiting"):
            return self._set_stage(kind)
        if number is None:
            if kind == "note":
                self.notes.append(event["text"])
            else:
                self._fail(Text.from_json(event["problem"]), Text.from_json(event["hint"]))
            return self._set_stage(self.stage)
        self.panes[self._local[number]].take(event)
        return self._set_stage("answering" if kind in ("start", "text", "done") else self.stage)

    def _fail(self, problem: Text, hint: Text) -> None:
        for pane in (self.panes[number] for number in self._local):
            if pane.reason is None:
                pane.reason, pane.problem, pane.hint = "error", problem.to_json(), hint.to_json()

    def _set_stage(self, stage: str) -> None:
        with self._changed:
            self.stage = stage
            self._changed.notify_all()


def ask(workspace: Workspace, models: Sequence[str], histories: Sequence[Sequence[Message]], sampled: Sampled) -> Answers:
    """Ask `models` side by side; one history per model, each ending with the question."""
    return Answers(workspace, models, histories, sampled).start()


def call(handle: Handle, method: str, path: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """One short request to the process."""
    connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=_CONNECT_SECONDS)
    try:
        connection.request(method, path, json.dumps(data or {}).encode(), _headers(handle))
        return json.loads(connection.getresponse().read() or b"{}")
    finally:
        connection.close()


def _headers(handle: Handle) -> dict[str, str]:
    return {"Authorization": f"Bearer {handle.token}", "Content-Type": "application/json"}
