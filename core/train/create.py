"""Make a run from a recipe: check what can be known before the start, freeze it, start it. No torch."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.folder import create_job, new_job_id
from core.jobs.launch import start_job
from core.machine import package_versions, read_gpus
from core.models.catalogue import find_local_base
from core.models.embedded import EMBEDDED_NAME, is_prepared
from core.models.header import HEAD_NAMES, read_header, tensor_shapes
from core.recipe.files import dump_recipe
from core.recipe.plan import Plan, plan_updates
from core.recipe.schema import Recipe
from core.redact import redact, redact_data
from core.runs import Run
from core.train.devices import choose_devices
from core.workspace import CHECKOUT, Workspace, slug

# Optimizer moments and exact values of two steps are kept for a resume: 2 x (value + 2 moments), all float32, so six times a float32
# adapter. A whole model is saved in its own format, mostly half as wide.
_RESUME_COPIES = {"lora": 6, "full": 12}
# At amber and at red; one that ends the run is saved instead of those it does not come to.
_ALERT_SNAPSHOTS = {"off": 0, "save": 2, "stop": 2}
_SPARE_BYTES = 200e6


def create_run(workspace: Workspace, recipe: Recipe, name: str = "", nodes: dict[str, Any] | None = None) -> Run:
    """Freeze `recipe` into a new run folder; it is not started yet.

    Args:
        workspace: where to.
        recipe: what to train.
        name: of the run; empty for the recipe's title.
        nodes: `count`, `rank` and `address` where several machines share it; see `core.train.launch.Nodes`.

    Raises:
        StudioError: a dataset or the model is missing, a dataset is empty, or the snapshots would not fit on the disk.
    """
    datasets = [_describe_source(workspace, entry) for entry in recipe.data.sources]
    plan = plan_updates(recipe, sum(entry["rows"] for entry in datasets))
    devices = choose_devices(recipe)
    check_disk(workspace, recipe, plan)
    folder = workspace.runs / new_job_id("", slug(name or recipe.title or recipe.data.sources[0].dataset))
    spec = {"name": name, "updates": plan.updates, "snapshots": plan.snapshot_steps, **devices.to_spec(),
            **({"nodes": nodes} if nodes else {})}
    environment = redact_data({
        "versions": package_versions(), "python": sys.version.split()[0], "system": platform.platform(), "device": devices.name,
        "processes": devices.processes, "gpus": [gpu.name for gpu in read_gpus()], "commit": _commit(), "argv": sys.argv})
    return Run(create_job(folder, "train", spec, devices.name, {
        "recipe.yaml": redact(dump_recipe(recipe)), "dataset.json": json.dumps({"sources": datasets, "seed": recipe.schedule.seed}),
        "environment.json": json.dumps(environment, indent=1)}).folder)


def start_run(workspace: Workspace, recipe: Recipe, name: str = "", nodes: dict[str, Any] | None = None) -> Run:
    """Create a run and start its worker."""
    run = create_run(workspace, recipe, name, nodes)
    start_job(run)
    return run


def _describe_source(workspace: Workspace, entry: Any) -> dict[str, Any]:
    dataset = load_dataset(workspace, entry.dataset)
    return {"dataset": entry.dataset, "groups": entry.groups, "weight": entry.weight, "rows": len(dataset.rows(entry.groups)),
            "sha256": dataset.card.sha256}


def _commit() -> str | None:
    """The checkout's commit; None outside a git checkout."""
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def snapshot_bytes(workspace: Workspace, recipe: Recipe) -> int:
    """Size of one snapshot on disk: the adapter in float32, or the whole model; 0 where the run has yet to fetch the model."""
    if recipe.model.source in ("embedded", EMBEDDED_NAME) and not is_prepared(workspace):
        return 20_000_000 * recipe.method.rank // 16
    folder = find_local_base(workspace, recipe.model.source)
    if folder is None:
        return 0  # whoever starts a run must not wait for a download: the job does it, and shows it
    if recipe.method.kind == "full":
        return read_header(folder).weight_bytes
    return 4 * lora_parameters(folder, recipe)


def lora_parameters(folder: Path, recipe: Recipe) -> int:
    """rank x (in + out) of every adapted layer, from the header alone."""
    total = 0
    for name, (_, shape) in tensor_shapes(folder).items():
        layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
        is_linear = len(shape) == 2 and "embed" not in layer and layer not in HEAD_NAMES
        if is_linear and (recipe.method.targets == "all-linear" or layer in recipe.method.targets):
            total += recipe.method.rank * sum(shape)
    return total


def needed_bytes(one: int, plan: Plan, kind: Literal["lora", "full"] = "lora", on_alert: str = "off") -> int:
    """Disk that a run takes at most: its snapshots of `one` bytes each, those of an alert, the state for a resume, and some room."""
    return round(one * (len(plan.snapshot_steps) + _ALERT_SNAPSHOTS[on_alert] + _RESUME_COPIES[kind]) + _SPARE_BYTES)


def check_disk(workspace: Workspace, recipe: Recipe, plan: Plan) -> None:
    """Raises StudioError when the snapshots and the state for a resume would not fit."""
    needed = needed_bytes(snapshot_bytes(workspace, recipe), plan, recipe.method.kind, recipe.early_stop.on_alert)
    free = workspace.free_bytes()
    if needed > free:
        raise StudioError(
            "{count} snapshots need about {needed} GB of disk and {free} GB are free.",
            "Ask for fewer snapshots (snapshots.count), a smaller rank, or free some space.",
            count=len(plan.snapshot_steps), needed=round(needed / 1e9, 2), free=round(free / 1e9, 2))


def describe_resume(run: Run) -> int:
    """The step a stopped run would go on from, 0 for the beginning."""
    kept = sorted((run.folder / "resume").glob("[0-9]*/step.json"))
    return json.loads(kept[-1].read_text())["step"] if kept else 0
