"""Serve the studio: check the port, go to the checkout (where `.streamlit/config.toml` is), become Streamlit.

    sweetspot studio --port 6006
    sweetspot studio --share --class
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from typing import NoReturn

import psutil

from core.errors import StudioError
from core.workspace import CHECKOUT

ADDRESS = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
DEFAULT_PORT = 6006
SHARED_UPLOAD_MB = 100
HEALTH_TIMEOUT_SECONDS = 1.0
# By these the server knows what it serves; here, where no command waits for Streamlit's import.
GATE = "SWEETSPOT_GATE"
HOSTS = "SWEETSPOT_HOSTS"
PORT = "SWEETSPOT_PORT"


def launch(port: int = DEFAULT_PORT, extra: Sequence[str] = (), *, address: str = ADDRESS, hosts: Sequence[str] = (),
           environment: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process with the server; returns only by an exception.

    Args:
        port: TCP port on the loopback address; 0 lets the system choose one, which Streamlit prints.
        extra: more options for `streamlit run`, such as `--server.runOnSave=true`;
            they win over the config file.
        address: where to listen; any other than the loopback address needs a gate.
        hosts: names a browser may use for this server, beside the config file's.
        environment: says what is served and to whom; see `studio.visitors`.

    Raises:
        StudioError: the port is taken, needs root, or is no port.
    """
    check_port(port, address)
    os.chdir(CHECKOUT)
    sys.stdout.flush()
    is_gated = bool((environment or {}).get(GATE))
    if not is_gated and address != ADDRESS:
        raise AssertionError("nobody is served on another address without a gate")
    if address != ADDRESS:
        # Streamlit would ask a server outside for this machine's public address, to print it.
        shown = next(iter(machine_addresses()), "localhost") if address in EVERYWHERE else address
        extra = [f"--server.address={address}", f"--browser.serverAddress={shown}", *extra]
    if is_gated:  # what thirty people upload at once is held in memory
        extra = [f"--server.maxUploadSize={SHARED_UPLOAD_MB}", *extra]
    # Behind a proxy on this machine, too, browsers use the names that were given.
    extra = [*(f"--server.allowedHosts={host}" for host in hosts), *extra]
    os.environ.update(environment or {})
    os.execv(sys.executable, server_command(port, extra))


def server_command(port: int, extra: Sequence[str] = ()) -> list[str]:
    script = str(CHECKOUT / "studio" / "served.py")
    return [sys.executable, "-m", "streamlit", "run", script, f"--server.port={port}", *extra]


def check_port(port: int, address: str = ADDRESS) -> None:
    """Raise a StudioError unless a server can listen on `port` of `address` now."""
    if not 0 <= port <= 65535:
        raise StudioError("{port} is not a port.", "Ports go from 1 to 65535; {usual} is the usual one.",
                          port=port, usual=DEFAULT_PORT)
    try:
        family = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise StudioError("{address} is no address of this machine.", "Take 0.0.0.0 for all of them, or one of: {known}.",
                          address=address, known=", ".join(machine_addresses()) or ADDRESS) from error
    with socket.socket(family) as probe:
        # As the server does: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StudioError("{address} is no address of this machine.", "Take 0.0.0.0 for all of them, or one of: {known}.",
                                  address=address, known=", ".join(machine_addresses()) or ADDRESS) from error
            raise _port_error(port, error) from error


def machine_addresses() -> list[str]:
    """The IP addresses by which other machines may reach this one."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
             if entry.family in (socket.AF_INET, socket.AF_INET6)]
    usable = [address for address in found if "%" not in address and not ipaddress.ip_address(address).is_loopback]
    return sorted(set(usable), key=lambda address: (":" in address, address))


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
