"""Launch scripts: valid shell, with the command that this machine would run, on every machine its own number."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from core.train.script import Cluster, launch_script
from studio.commands.runs import on_slurms_notice


@pytest.fixture
def pretenders(tmp_path: Path) -> Path:
    """Programs that say how they were called, in the place of sweetspot, srun and scontrol."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "sweetspot": 'echo "$SWEETSPOT_HOME"; printf "%s\\n" "$@"',
        "scontrol": "echo node7; echo node8",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; SLURM_NODEID=1 exec "$@"',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def said(text: str, pretenders: Path, *arguments: str) -> list[str]:
    """What sweetspot was told when the script ran."""
    own = next(line for line in text.splitlines() if line.startswith("export PATH="))
    text = text.replace(own, f'export PATH={shlex.quote(str(pretenders))}:"$PATH"')
    done = subprocess.run(["sh", "-s", *arguments], input=text, capture_output=True, text=True, check=True,
                          env=os.environ | {"SLURM_JOB_NODELIST": "node[7-8]"})
    return done.stdout.splitlines()


def test_by_hand_each_machine_has_its_number(workspace, pretenders):
    alone = launch_script("plain", workspace, "mine", ["--name", "it's; rm x"], Cluster(4))
    assert said(alone, pretenders) == [str(workspace.root), "train", "mine", "--name", "it's; rm x", "--gpus", "4"]
    two = launch_script("plain", workspace, "mine", ["--data", "alex"], Cluster(8, 2))
    assert said(two, pretenders, "1", "big-one") == [
        str(workspace.root), "train", "mine", "--data", "alex", "--gpus", "8", "--nodes", "2", "--rank", "1", "--host", "big-one:29500"]


def test_slurm_starts_it_once_on_every_node(workspace, pretenders):
    text = launch_script("slurm", workspace, "mine", ["--name", "it's $x"], Cluster(4, 2))
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=4"} <= set(text.splitlines())
    assert said(text, pretenders) == [str(workspace.root), "train", "mine", "--name", "it's $x", "--gpus", "4", "--nodes", "2",
                                      "--rank", "1", "--host", "node7:29500"]
    one = launch_script("slurm", workspace, "mine", [], Cluster(2))
    assert said(one, pretenders) == [str(workspace.root), "train", "mine", "--gpus", "2"]


def test_slurms_notice_is_heard_and_does_not_end_who_hears_it(monkeypatch):
    """Without this the command would end at once, and Slurm would kill the training with it before it has saved."""
    said: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.getsignal(signal.SIGTERM)
    with on_slurms_notice(lambda: said.append("stop and save")):
        os.kill(os.getpid(), signal.SIGTERM)
    assert said == ["stop and save"] and signal.getsignal(signal.SIGTERM) == before
    monkeypatch.delenv("SLURM_JOB_ID")
    with on_slurms_notice(lambda: said.append("elsewhere")):
        assert signal.getsignal(signal.SIGTERM) == before
