"""`sweetspot studio`: on this machine only, or behind a password for others and for a class."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from core.access.password import set_password, stored_password
from core.access.secret_file import access_folder
from core.classroom.room import Classroom
from core.errors import StudioError
from core.roots import ROOTS, read_roots
from core.workspace import Workspace
from studio.launch import ADDRESS, DEFAULT_PORT, EVERYWHERE, GATE, HOSTS, PORT, check_port, launch, machine_addresses
from studio.terminal import WorkspaceOption, say

PASSWORD = "SWEETSPOT_PASSWORD"
PROXIES = "FORWARDED_ALLOW_IPS"  # read by the web server, uvicorn


def studio(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = DEFAULT_PORT,
    share: Annotated[bool, typer.Option("--share", help="Serve other machines too; asks for a password.")] = False,
    address: Annotated[str, typer.Option(help="With --share: the address to listen on; 0.0.0.0 is every one.")] = "0.0.0.0",
    class_: Annotated[bool, typer.Option("--class", help="A workspace for each student, and a wall for the teacher.")] = False,
    host: Annotated[list[str] | None, typer.Option(help="With --share: one more name browsers use for this machine.")] = None,
    root: Annotated[list[Path] | None, typer.Option(help="One more folder that pages may read files from.")] = None,
    new_password: Annotated[bool, typer.Option("--new-password", help="Ask for another password than the one kept.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the studio in the browser: on this machine only, or with --share behind a password.

    The password is asked for here, or read from SWEETSPOT_PASSWORD; only a hash of it is kept.

    Example: sweetspot studio --port 6006
    """
    where = address if share else ADDRESS
    check_port(port, where)
    place = Workspace.open(workspace)
    environment = {"SWEETSPOT_HOME": str(place.root), ROOTS: os.pathsep.join(read_roots(root or [])), GATE: "", PORT: str(port)}
    if not share and not class_:
        say(f"Sweetspot on http://127.0.0.1:{port}  (from another computer: ssh -L {port}:127.0.0.1:{port} USER@THIS-MACHINE)")
        launch(port, environment=environment)
    prepare_password(place, new_password)
    environment |= believed_proxies(where, share)
    names = [*(host or []), *(machine_names() if share else []), "localhost", "127.0.0.1"]
    environment |= {GATE: ",".join(["share"] * share + ["class"] * class_), HOSTS: ",".join(names)}
    for line in what_is_reachable(port, where if share else None):
        say(line)
    if class_:
        code = Classroom.open(place).settings().code
        say(f"Class: students type their name{f' and the code {code[:4]}-{code[4:]}' if share else ''}; "
            "the teacher signs in with the password.")
    launch(port, address=where, hosts=names, environment=environment)


def believed_proxies(address: str, is_shared: bool) -> dict[str, str]:
    """Whose X-Forwarded-For is believed: the proxy's of this machine, where one is meant to stand in front, else nobody's.

    Who comes by `ssh -L` seems to be on this machine too, and could name another address for each guess.
    """
    if os.environ.get(PROXIES) or (is_shared and address in ("127.0.0.1", "::1", "localhost")):
        return {}
    return {PROXIES: ""}


def prepare_password(place: Workspace, is_new: bool) -> None:
    """See that a password is kept: from the environment, else the one kept already, else asked for.

    Whoever has it may train and read everything here. It never stands in a command line, where every user of the machine could read it,
    and it is taken out of the environment before the server and its workers start.

    Raises:
        StudioError: none was given and there is no terminal to ask at, or it is too short.
    """
    given = os.environ.pop(PASSWORD, None)
    if given is None and stored_password(place) is not None and not is_new:
        return
    if given is None:
        if not sys.stdin.isatty():
            raise StudioError("A shared studio needs a password, and nobody is here to be asked.",
                              "Set SWEETSPOT_PASSWORD, or start it once from a terminal.")
        given = getpass.getpass("Password for whoever opens the studio: ")
        if getpass.getpass("Once more: ") != given:
            raise StudioError("The two passwords differ.", "Start again and type the same one twice.")
    from core.access.password import matches

    stored = stored_password(place)
    if stored is None or not matches(given, stored):
        set_password(place, given)
        # Whoever came in by the old one types the new one.
        (access_folder(place) / "sessions.json").unlink(missing_ok=True)


def machine_names() -> list[str]:
    """Names and addresses by which a browser may ask for this machine."""
    name = socket.gethostname()
    return list(dict.fromkeys(filter(None, [*machine_addresses(), name, f"{name}.local", socket.getfqdn()])))


def what_is_reachable(port: int, shared_address: str | None) -> list[str]:
    """What is said at the start: who can reach the studio, and that nothing is encrypted."""
    if shared_address is None:
        return [f"Sweetspot on http://127.0.0.1:{port}, behind a password. Reachable from this machine only; from another computer: "
                f"ssh -L {port}:127.0.0.1:{port} USER@THIS-MACHINE"]
    shown = machine_addresses() if shared_address in EVERYWHERE else [shared_address]
    if shared_address == "0.0.0.0":
        shown = [address for address in shown if ":" not in address]
    urls = [f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}" for address in shown]
    return [f"Sweetspot is shared on {', '.join(urls) or f'port {port}'}, behind a password.",
            "Every machine that can reach these addresses can see the sign-in page; after it the whole studio can be used: "
            "its datasets, runs, models, and training on this machine.",
            "The connection is not encrypted: whoever listens in the network reads the password and the pages. For encryption, leave "
            f"--share away and let each computer connect with ssh -L {port}:127.0.0.1:{port} USER@THIS-MACHINE, "
            "or put a TLS proxy in front (docs/security.md)."]
