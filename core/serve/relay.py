"""The way from the HTTP server to the chat process and back, without a thread per request. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from core.chat.client import ensure_worker
from core.chat.handle import Handle
from core.errors import StudioError
from core.workspace import Workspace

Event = dict[str, Any]

_CONNECT_SECONDS = 10.0
_ATTEMPTS = 3
# An event is one line; with 20 log-probabilities it is a few kilobytes.
_MOST_LINE_BYTES = 1 << 22


class WorkerLost(StudioError):
    """The chat process is not there, or went away in the middle."""

    code = "worker_lost"


class Relay:
    """Asks the chat process of a folder; it is started when it is not there.

    Args:
        options: for `core.chat.worker`.
    """

    def __init__(self, workspace: Workspace, folder: Path, options: Sequence[str]) -> None:
        self.workspace, self.folder, self.options = workspace, folder, list(options)

    async def events(self, request: dict[str, Any]) -> AsyncIterator[Event]:
        """The events of one request; closing the iterator hangs up, which ends the decoding.

        Raises:
            StudioError: the chat process cannot be started or was lost.
        """
        reader, writer = await self._send(json.dumps(request).encode())
        try:
            if not await self._is_accepted(reader):
                yield {"event": "error", "pane": None, "code": "", **json.loads(await reader.read())}
                return
            while line := await reader.readline():
                event = json.loads(line)
                if event["event"] == "end":
                    return
                yield event
            raise self._lost()
        except (OSError, ValueError) as error:
            raise self._lost() from error
        finally:
            writer.close()

    async def _send(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for attempt in range(_ATTEMPTS):
            handle = await asyncio.to_thread(ensure_worker, self.workspace, self.folder, self.options)
            with contextlib.suppress(OSError):  # one that is just ending gets a successor
                connecting = asyncio.open_connection("127.0.0.1", handle.port, limit=_MOST_LINE_BYTES)
                reader, writer = await asyncio.wait_for(connecting, _CONNECT_SECONDS)
                writer.write(_head(handle, len(body)) + body)
                await writer.drain()
                return reader, writer
            await asyncio.sleep(0.3 * (attempt + 1))
        raise self._lost()

    async def _is_accepted(self, reader: asyncio.StreamReader) -> bool:
        """Read the head of the response; whether its status is 200."""
        status = await reader.readline()
        if not status:
            raise self._lost()
        while (await reader.readline()).strip():
            pass
        return status.split()[1] == b"200"

    def _lost(self) -> WorkerLost:
        return WorkerLost("The chat process ended without a word: it was killed, or the machine ran out of memory.",
                          "Ask again; it starts anew. Its log is {log}.", log=str(self.folder / "log.txt"))


def _head(handle: Handle, length: int) -> bytes:
    """HTTP/1.0: the end of the answer is the end of the connection."""
    return (f"POST /answer HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {handle.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n").encode()
