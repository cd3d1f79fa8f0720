"""The port is checked before Streamlit starts, and each refusal has a way out."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from core.errors import StudioError
from core.workspace import CHECKOUT
from studio import launch


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((launch.ADDRESS, 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def studio_port() -> Iterator[int]:
    """A server that answers as Streamlit's health check does."""
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/_stcore/health" else 404)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer((launch.ADDRESS, 0), Health)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_free_port_passes(taken_port: int) -> None:
    launch.check_port(0)
    launch.check_port(launch._free_port())


def test_a_taken_port_is_refused(taken_port: int) -> None:
    with pytest.raises(StudioError, match=f"Port {taken_port} is taken by another program") as caught:
        launch.check_port(taken_port)
    assert "--port" in str(caught.value.hint)
    assert str(taken_port) in caught.value.problem.to("zh") and "占用" in caught.value.problem.to("zh")


def test_a_second_studio_is_told_where_the_first_is(studio_port: int) -> None:
    with pytest.raises(StudioError, match="a studio is running there already") as caught:
        launch.check_port(studio_port)
    assert f"http://127.0.0.1:{studio_port}" in str(caught.value.hint)


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(StudioError, match="is not a port"):
        launch.check_port(port)


def test_launch_becomes_streamlit_in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    def become(program: str, argv: list[str]) -> None:
        seen.update(program=program, argv=argv, folder=Path.cwd())
        raise SystemExit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execv", become)
    with pytest.raises(SystemExit):
        launch.launch(0, ["--server.runOnSave=true"])
    assert seen["folder"] == CHECKOUT
    assert seen["argv"][1:4] == ["-m", "streamlit", "run"]
    assert seen["argv"][-2:] == ["--server.port=0", "--server.runOnSave=true"]
