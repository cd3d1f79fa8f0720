"""Which devices a run gets, and how many processes share it. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from core.errors import StudioError
from core.jobs.launch import worker_environment
from core.machine import read_gpus
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


def visible_gpus() -> list[int]:
    """The GPUs that this process may use, as the driver numbers them; CUDA_VISIBLE_DEVICES narrows them, as a cluster sets it."""
    there = [gpu.index for gpu in read_gpus()]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None or not all(part.strip().isdecimal() for part in allowed.split(",")):
        return there if allowed != "" else []
    return [number for number in map(int, allowed.split(",")) if number in there]


def own_gpu(gpus: list[int] | None, local: int) -> int:
    """What CUDA calls the GPU of process `local` of this machine, when `gpus` are those of the run: it counts the visible ones only."""
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
