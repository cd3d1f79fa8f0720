"""Serve: load the models, listen on the loopback address, and end the chat process with it. No torch."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.chat.choices import local_model
from core.chat.client import end_worker
from core.chat.handle import SERVERS
from core.chat.proof import model_weights
from core.chat.talk import Said
from core.errors import StudioError
from core.serve.app import build_app
from core.serve.relay import Relay
from core.words import Text
from core.workspace import Workspace, has_ended

ADDRESS = "127.0.0.1"
TOKEN_VARIABLE = "SWEETSPOT_API_KEY"
# A connection that is still answered gets so long when the server is told to end.
_GRACE_SECONDS = 3
# Connections that may wait to be accepted; as uvicorn has it.
_WAITING = 2048


@dataclass(frozen=True)
class Served:
    """What is served: one answer of each model, as the proof that it can; and sentences about all of them."""

    answers: list[Said]
    notes: list[str]


def open_port(port: int) -> socket.socket:
    """Listen on `port` of the loopback address; 0 takes any free one.

    Raises:
        StudioError: it is taken, needs root, or is no port.
    """
    if not 0 <= port <= 65535:
        raise StudioError("{port} is not a port.", "Take one from 1024 to 65535, or 0 for any that is free.", port=port)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
    except OSError as error:
        listening.close()
        if error.errno == errno.EACCES:
            raise StudioError("Port {port} needs root.", "Take one from 1024 to 65535, or 0 for any that is free.", port=port) from error
        raise StudioError("Port {port} is taken by another program.", "Take another one with --port; 0 takes any that is free.",
                          port=port) from error
    return listening


def serve_folder(workspace: Workspace) -> Path:
    """Where this server's chat process keeps its handle and log; what servers left that were killed is swept."""
    for old in workspace.cache.glob(SERVERS):
        if has_ended(old.name.rpartition("-")[2]):
            shutil.rmtree(old, ignore_errors=True)
    return workspace.cache / f"serve-{os.getpid()}"


def load_all(relay: Relay, models: Sequence[str]) -> Served:
    """Let every model say one token: all are loaded then, and it is known who answers under which name.

    Raises:
        StudioError: one of them cannot answer.
    """
    return asyncio.run(_load_all(relay, models))


async def _load_all(relay: Relay, models: Sequence[str]) -> Served:
    answers, notes = [Said(model=name) for name in models], []
    request = {"id": uuid.uuid4().hex, "models": list(models), "sampled": {"max_new_tokens": 1},
               "histories": [[{"role": "user", "content": "Hi"}]] * len(models)}
    async for event in relay.events(request):
        if event["event"] == "error":
            problem, hint = Text.from_json(event["problem"]), Text.from_json(event["hint"])
            error = StudioError(problem.template, hint.template, **{**problem.values, **hint.values})
            raise error
        if event["pane"] is not None:
            answers[event["pane"]].take(event)
        elif event["event"] == "note":
            notes.append(str(Text.from_json(event["text"])))
    return Served(answers, notes)


def listen(workspace: Workspace, relay: Relay, models: Sequence[str], listening: socket.socket, token: str,
           on_ready: Callable[[], None]) -> None:
    """Serve until the process is told to end, then end the chat process."""
    import uvicorn

    app = build_app({name: _changed(workspace, name) for name in models}, relay, token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                                           timeout_graceful_shutdown=_GRACE_SECONDS))
    try:
        listening.listen(_WAITING)  # whoever is told that it is ready may knock before the server answers the door
        on_ready()
        server.run(sockets=[listening])
    finally:
        end_worker(workspace, folder=relay.folder)
        shutil.rmtree(relay.folder, ignore_errors=True)


def _changed(workspace: Workspace, name: str) -> int:
    """When the weights of a model were written, in seconds since the epoch."""
    try:
        return int(max(path.stat().st_mtime for path in model_weights(local_model(workspace, name))))
    except (StudioError, OSError, ValueError):
        return int(time.time())
