"""What doctor finds around the studio: each finding both ways."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from core import surroundings
from core.machine import diagnose
from core.surroundings import look_at_folder, look_at_fonts, look_at_port, look_at_versions
from core.workspace import Workspace


def test_a_workspace_is_tried_by_writing(workspace, monkeypatch):
    assert look_at_folder(workspace)[0] == "ok" and list(workspace.cache.glob(".probe*")) == []
    level, text, fix = look_at_folder(Workspace(Path("/proc")))
    assert level == "error" and "cannot be written" in str(text) and "SWEETSPOT_HOME" in str(fix)


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is taken" in str(look_at_port(taken.getsockname()[1])[1])
        number = taken.getsockname()[1]
    assert "is free" in str(look_at_port(number)[1])


def test_fonts_are_asked_of_fontconfig(tmp_path, monkeypatch):
    program = tmp_path / "fc-list"
    for output, level in (("Noto Sans CJK SC", "ok"), ("", "warning")):
        program.write_text(f"#!/bin/sh\necho '{output}'\n")
        program.chmod(stat.S_IRWXU)
        monkeypatch.setattr(surroundings.shutil, "which", lambda name: str(program))
        found = look_at_fonts()
        assert found is not None and found[0] == level
    monkeypatch.setattr(surroundings.shutil, "which", lambda name: None)
    assert look_at_fonts() is None


def test_versions_are_compared_with_the_tested_ones(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# tested\ntorch==2.13.0+cpu\npeft==0.18.0 ; python_version > '3'\n    --hash=x==y\n")
    assert look_at_versions({"torch": "2.13.0", "peft": "0.18.0", "plotly": "1"}, lock)[0] == "ok"  # type: ignore[index]
    level, text, _ = look_at_versions({"torch": "2.1.0", "peft": "-"}, lock)  # type: ignore[misc]
    assert level == "warning" and "torch 2.1.0 (2.13.0+cpu)" in str(text) and "peft" not in str(text)
    assert look_at_versions({}, tmp_path / "none") is None


def test_doctor_says_all_of_it(workspace):
    said = " ".join(str(finding.text["template"]) for finding in diagnose(workspace))
    assert all(part in said for part in ("can be written", "port", "versions"))
