"""`sweetspot studio --share` and `--class`: the password, what is said at the start, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from runpy import run_path

import pytest

from core.access.password import matches, set_password, stored_password
from core.access.sessions import Sessions
from core.errors import StudioError
from core.workspace import Workspace
from studio import launch
from studio.cli import app
from studio.commands import share
from studio.commands.share import PROXIES, prepare_password, what_is_reachable
from studio.gate import Gate, OwnPages
from studio.launch import GATE


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that would have become the server."""
    lines: list[list[str]] = []

    def become(program: str, arguments: list[str]) -> None:
        lines.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(os, "chdir", lambda folder: None)
    monkeypatch.setattr(launch, "machine_addresses", lambda: ["10.0.0.5"])
    monkeypatch.setattr(share, "machine_addresses", lambda: ["10.0.0.5"])
    for name in ("SWEETSPOT_GATE", "SWEETSPOT_HOSTS", "SWEETSPOT_PORT", "SWEETSPOT_ROOTS", PROXIES):
        monkeypatch.setenv(name, "")  # launching sets them; they are put back after the test
    return lines


def run(*arguments: str) -> None:
    with suppress(SystemExit):
        app(list(arguments), prog_name="sweetspot", standalone_mode=False)


def test_nothing_is_shared_unless_it_is_said(started: list[list[str]], workspace: Workspace) -> None:
    run("studio", "--port", "0")
    (line,) = started
    assert line[4].endswith("studio/served.py") and not any("address" in part or "Hosts" in part for part in line)
    assert os.environ["SWEETSPOT_GATE"] == "" and stored_password(workspace) is None


def test_shared_studio_stands_behind_the_gate_and_its_password_in_no_command_line(
        started: list[list[str]], workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("SWEETSPOT_PASSWORD", "correct horse")
    run("studio", "--share", "--class", "--port", "0", "--host", "studio.example.org")
    (line,) = started
    assert line[4].endswith("studio/served.py") and "--server.address=0.0.0.0" in line
    assert "correct horse" not in " ".join(line) and "SWEETSPOT_PASSWORD" not in os.environ
    assert matches("correct horse", stored_password(workspace))
    allowed = {part.partition("=")[2] for part in line if part.startswith("--server.allowedHosts")}
    assert {"studio.example.org", "10.0.0.5", "127.0.0.1"} <= allowed and "*" not in allowed
    assert not any("enableCORS" in part or "enableXsrf" in part for part in line)
    assert os.environ["SWEETSPOT_GATE"] == "share,class" and "--server.maxUploadSize=100" in line
    said = capsys.readouterr().out
    assert "http://10.0.0.5:0" in said.replace("\n", "") and "not encrypted" in said
    assert re.search(r"code [A-Z2-9]{4}-[A-Z2-9]{4}", said)


def test_proxy_on_this_machine_may_call_it_by_the_name_that_was_given(started: list[list[str]], workspace: Workspace,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEETSPOT_PASSWORD", "correct horse")
    run("studio", "--share", "--address", "127.0.0.1", "--port", "0", "--host", "studio.example.org")
    (line,) = started
    assert "--server.allowedHosts=studio.example.org" in line and not any("server.address" in part for part in line)
    assert "studio.example.org" in os.environ["SWEETSPOT_HOSTS"].split(",")


def test_served_pages_stand_behind_a_gate_or_are_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[type] = []
    monkeypatch.setattr("streamlit.App", lambda script, middleware: made.extend(one.cls for one in middleware))
    for gate, kind in (("", OwnPages), ("share", Gate), ("class", Gate)):
        monkeypatch.setenv(GATE, gate)
        run_path(str(Path(launch.__file__).with_name("served.py")))
        assert made.pop() is kind and made == []


@pytest.mark.parametrize(("arguments", "address", "counted"), [
    (["--class"], "127.0.0.1", "127.0.0.1"), (["--share"], "127.0.0.1", "127.0.0.1"), (["--share"], "10.0.0.9", "10.0.0.9"),
    (["--share", "--address", "127.0.0.1"], "127.0.0.1", "6.6.6.6")])
def test_nobody_but_a_proxy_says_who_is_counted(arguments: list[str], address: str, counted: str, started: list[list[str]],
                                                workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes by ssh seems to be on this machine, and must not be another address at each guess."""
    import uvicorn

    monkeypatch.setenv("SWEETSPOT_PASSWORD", "correct horse")
    monkeypatch.delenv(PROXIES)  # as it is where nobody has set it: the web server then believes whoever seems to be on this machine
    run("studio", "--port", "0", *arguments)
    assert len(started) == 1
    seen: list[str] = []

    async def app_behind(scope, receive, send) -> None:
        seen.append(scope["client"][0])

    config = uvicorn.Config(app_behind, lifespan="off", log_config=None)
    config.load()
    asyncio.run(config.loaded_app({"type": "http", "client": (address, 5), "scheme": "http", "headers": [(b"x-forwarded-for", b"6.6.6.6")]},
                                  None, None))
    assert seen == [counted]


def test_protection_against_other_sites_is_never_switched_off() -> None:
    settings = (Path(launch.__file__).resolve().parents[1] / ".streamlit" / "config.toml").read_text(encoding="utf-8")
    code = "\n".join(line for line in settings.splitlines() if not line.startswith("#"))
    assert "enableCORS" not in code and "enableXsrfProtection" not in code and 'address = "127.0.0.1"' in code
    # Streamlit's other doors, shut unless they are opened: its agents' API and the folder of static files.
    assert "enableAgentApi" not in code and "enableStaticServing" not in code and "trustedUserHeaders" not in code


def test_shared_studio_without_a_password_does_not_start(started: list[list[str]], workspace: Workspace,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWEETSPOT_PASSWORD", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(StudioError, match="needs a password"):
        run("studio", "--share", "--port", "0")
    monkeypatch.setenv("SWEETSPOT_PASSWORD", "short")
    with pytest.raises(StudioError, match="5 characters"):
        run("studio", "--share", "--port", "0")
    assert started == []


def test_other_password_signs_everybody_out_and_the_same_one_nobody(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    set_password(workspace, "correct horse")
    path = workspace.root / "access" / "sessions.json"
    token = Sessions(path).sign_in("owner")
    monkeypatch.setenv("SWEETSPOT_PASSWORD", "correct horse")
    prepare_password(workspace, False)
    assert Sessions(path).visitor(token) is not None
    monkeypatch.setenv("SWEETSPOT_PASSWORD", "battery staple")
    prepare_password(workspace, False)
    assert Sessions(path).visitor(token) is None and matches("battery staple", stored_password(workspace))


def test_start_says_who_can_reach_it() -> None:
    alone = " ".join(what_is_reachable(6006, None))
    assert "this machine only" in alone and "ssh -L" in alone
    shared = " ".join(what_is_reachable(6006, "192.168.1.7"))
    assert "http://192.168.1.7:6006" in shared and "not encrypted" in shared and "TLS proxy" in shared


def test_nobody_is_served_elsewhere_without_a_gate(started: list[list[str]]) -> None:
    with pytest.raises(AssertionError, match="without a gate"):
        launch.launch(0, address="0.0.0.0")
    assert started == []


@pytest.mark.parametrize("address", ["203.0.113.9", "no such host"])
def test_address_of_another_machine_is_refused_in_words(address: str) -> None:
    with pytest.raises(StudioError, match="no address of this machine"):
        launch.check_port(0, address)
