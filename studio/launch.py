"""Serve the studio: check the port, go to the checkout (where `.streamlit/config.toml` is), become Streamlit.

    sweetspot studio --port 6006
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import urllib.request
from collections.abc import Sequence
from typing import NoReturn

from core.errors import StudioError
from core.workspace import CHECKOUT

ADDRESS = "127.0.0.1"
DEFAULT_PORT = 6006
HEALTH_TIMEOUT_SECONDS = 1.0


def launch(port: int = DEFAULT_PORT, extra: Sequence[str] = ()) -> NoReturn:
    """Replace this process with the server; returns only by an exception.

    Args:
        port: TCP port on the loopback address; 0 lets the system choose one, which Streamlit prints.
        extra: more options for `streamlit run`, such as `--server.runOnSave=true`;
            they win over the config file.

    Raises:
        StudioError: the port is taken, needs root, or is no port.
    """
    check_port(port)
    os.chdir(CHECKOUT)
    sys.stdout.flush()
    os.execv(sys.executable, server_command(port, extra))


def server_command(port: int, extra: Sequence[str] = ()) -> list[str]:
    script = str(CHECKOUT / "studio" / "app.py")
    return [sys.executable, "-m", "streamlit", "run", script, f"--server.port={port}", *extra]


def check_port(port: int) -> None:
    """Raise a StudioError unless a server can listen on `port` now."""
    if not 0 <= port <= 65535:
        raise StudioError("{port} is not a port.", "Ports go from 1 to 65535; {usual} is the usual one.",
                          port=port, usual=DEFAULT_PORT)
    with socket.socket() as probe:
        # As the server does: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise _port_error(port, error) from error


def _port_error(port: int, error: OSError) -> StudioError:
    if error.errno == errno.EACCES:
        return StudioError(
            "Port {port} needs root.", "Take one from 1024 up: sweetspot studio --port {other}.",
            port=port, other=DEFAULT_PORT,
        )
    if _is_streamlit(port):
        return StudioError(
            "Port {port} is taken: a studio is running there already.",
            "Open {url}, or start another one with: sweetspot studio --port {other}.",
            port=port, url=f"http://{ADDRESS}:{port}", other=_free_port(),
        )
    return StudioError(
        "Port {port} is taken by another program.", "Take another: sweetspot studio --port {other}.",
        port=port, other=_free_port(),
    )


def _is_streamlit(port: int) -> bool:
    """Whether a Streamlit server answers; asked directly, whatever proxy the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{ADDRESS}:{port}/_stcore/health", timeout=HEALTH_TIMEOUT_SECONDS) as answer:
            return answer.read(16) == b"ok"
    except (OSError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]
