"""Which devices a run gets, and how many processes share it. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from core.errors import StudioError
from core.jobs.launch import worker_environment
from core.machine import visible_gpus
from core.recipe.schema import Recipe
from core.workspace import Workspace


@dataclass(frozen=True)
class Devices:
    """Where a run is computed.

    Attributes:
        name: what its job queues for: `cpu`, `cuda:0` or `cuda:0,cuda:2`.
        processes: on this machine; one for each GPU.
        gpus: numbers of the GPUs, as the driver counts them; None on a processor.
    """

    name: str
    processes: int
    gpus: list[int] | None

    def to_spec(self) -> dict[str, Any]:
        return {"device": self.name, "processes": self.processes, "gpus": self.gpus}


def choose_devices(recipe: Recipe) -> Devices:
    """The devices that a recipe asks for.

    Raises:
        StudioError: this machine does not have them.
    """
    wanted = recipe.device.gpus
    known = [] if recipe.device.kind == "cpu" else visible_gpus()
    if not known:
        if isinstance(wanted, list):
            raise StudioError("The recipe names GPUs ({gpus}), and this training has none.",
                              "Set device.gpus: auto, or look at `sweetspot doctor`.", gpus=", ".join(map(str, wanted)))
        return Devices("cpu", wanted if isinstance(wanted, int) else 1, None)
    gpus = wanted if isinstance(wanted, list) else known[:wanted if isinstance(wanted, int) else 1]
    missing = [gpu for gpu in gpus if gpu not in known]
    if missing or (isinstance(wanted, int) and wanted > len(known)):
        raise StudioError("The recipe asks for GPUs that are not there: {wanted}; this machine has {count}: {numbers}.",
                          "Set device.gpus to {count} or less, or to a list of existing numbers.",
                          wanted=wanted if isinstance(wanted, int) else ", ".join(map(str, wanted)), count=len(known),
                          numbers=", ".join(map(str, known)))
    return Devices(",".join(f"cuda:{gpu}" for gpu in gpus), len(gpus), gpus)


def own_gpu(gpus: list[int] | None, local: int, processes: int = 1) -> int:
    """What CUDA calls the GPU of process `local` of this machine: it counts the visible ones only.

    Args:
        gpus: those of the run, as machine 0 numbers them.
        local: number of the process on its machine.
        processes: in all; of several each sees the GPUs of its own machine's share alone, in order, whatever machine 0 calls its own.
    """
    if processes > 1:
        return local
    visible = visible_gpus()
    wanted = gpus[local] if gpus and local < len(gpus) else None
    return visible.index(wanted) if wanted in visible else local


def join_training(workspace: Workspace, recipe: Recipe, nodes: int, rank: int, address: str) -> int:
    """Be machine `rank` of a training that machine 0 keeps, until it ends; returns the exit code.

    Raises:
        StudioError: this machine does not have the GPUs that the recipe asks for.
    """
    devices = choose_devices(recipe)
    os.environ["SWEETSPOT_HOME"] = str(workspace.root)
    os.environ["SWEETSPOT_DEVICE"] = recipe.device.kind
    os.environ.update(worker_environment())
    from core.train.launch import Nodes, help_as_node

    return help_as_node(devices.processes, Nodes(nodes, rank, address), devices.gpus)
