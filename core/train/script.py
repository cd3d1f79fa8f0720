"""A shell script that starts a training on a cluster: by hand on every machine, or as one Slurm job. No torch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.workspace import Workspace

Kind = Literal["plain", "slurm"]
PORT = 29_500


@dataclass(frozen=True)
class Cluster:
    """How much of a cluster a training takes.

    Attributes:
        gpus: of each machine.
        nodes: machines.
    """

    gpus: int = 1
    nodes: int = 1


def launch_script(kind: Kind, workspace: Workspace, recipe: str, options: Sequence[str], cluster: Cluster) -> str:
    """The script.

    Args:
        kind: `plain` runs on every machine with its number; `slurm` is handed to sbatch once.
        workspace: where the run is kept; all machines must see it in the same place.
        recipe: as for `sweetspot train`.
        options: more of its command line, such as ["--data", "alex"].
        cluster: how much to take.
    """
    command = ["sweetspot", "train", shlex.quote(recipe), *map(shlex.quote, options), "--gpus", str(cluster.gpus)]
    if kind == "slurm":
        return _slurm(workspace, command, cluster)
    return _plain(workspace, command, cluster)


def _surroundings(workspace: Workspace) -> list[str]:
    return ["set -eu", f"export SWEETSPOT_HOME={shlex.quote(str(workspace.root))}",
            f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"']


def _plain(workspace: Workspace, command: list[str], cluster: Cluster) -> str:
    if cluster.nodes == 1:
        return "\n".join(["#!/bin/sh", "# Run it with: sh train.sh", *_surroundings(workspace), "exec " + " ".join(command), ""])
    lines = [
        "#!/bin/sh",
        f"# Run it on each of the {cluster.nodes} machines, with the machine's number: sh train.sh 0 FIRST, sh train.sh 1 FIRST, ...",
        "# FIRST is the name or address of machine 0. All of them must see the workspace and this environment in the same place.",
        *_surroundings(workspace),
        f'exec {" ".join(command)} --nodes {cluster.nodes} --rank "$1" --host "$2:{PORT}"',
    ]
    return "\n".join([*lines, ""])


def _slurm(workspace: Workspace, command: list[str], cluster: Cluster) -> str:
    lines = [
        "#!/bin/sh",
        "# Hand it to Slurm with: sbatch train.sbatch",
        "# All machines must see the workspace and this environment in the same place.",
        "#SBATCH --job-name=sweetspot",
        f"#SBATCH --nodes={cluster.nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={cluster.gpus}",
        f"#SBATCH --cpus-per-task={8 * cluster.gpus}",
        "#SBATCH --time=12:00:00",
        "# Two minutes before the time is up the training is asked to stop; it saves a snapshot and can be resumed.",
        "#SBATCH --signal=TERM@120",
        *_surroundings(workspace),
    ]
    if cluster.nodes == 1:
        return "\n".join([*lines, "srun " + " ".join(command), ""])
    inner = f'exec {" ".join(command)} --nodes {cluster.nodes} --rank "$SLURM_NODEID" --host "$FIRST:{PORT}"'
    return "\n".join([*lines, 'FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "export FIRST",
                      f"srun --kill-on-bad-exit=1 sh -c {shlex.quote(inner)}", ""])
