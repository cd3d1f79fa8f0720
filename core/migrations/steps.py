"""The steps, oldest first; step number n makes a workspace of version n - 1 one of version n.

A step yields (file, new text). It reads plain data and not through the program's own classes where those may change again, leaves what
it does not understand as it is, and finds nothing to do in what it has changed already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from core.workspace import Workspace

Change = tuple[Path, str]
# What takes more tokens than any row: the number of rows alone then decides.
_NO_TOKEN_LIMIT = 2**62


def name_devices_anew(workspace: Workspace) -> Iterator[Change]:
    """Recipes said `deepspeed_stage`, `offload: true`, `checkpointing: auto` and `on_alert: save`."""
    for path in [*workspace.recipes.glob("*.yaml"), *workspace.runs.glob("*/recipe.yaml")]:
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        device = recipe.get("device") if isinstance(recipe, dict) else None
        if not isinstance(device, dict) or "deepspeed_stage" not in device:
            continue
        stage = device.pop("deepspeed_stage")
        device["zero"] = stage
        device["offload"] = ("all" if stage == 3 else "optimizer") if device.get("offload") is True else "none"
        if device.get("checkpointing") == "auto":
            device["checkpointing"] = "off"
        stop = recipe.get("early_stop")
        if isinstance(stop, dict) and stop.get("on_alert") == "save":
            stop["on_alert"] = "off"  # nothing was ever saved for it in that version
        yield path, yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False)


def note_micro_batches(workspace: Workspace) -> Iterator[Change]:
    """The state for a resume did not say how micro-batches were cut: one row at a time fits wherever the run has trained before."""
    for path in workspace.runs.glob("*/resume/*/step.json"):
        about = _read(path)
        if about is not None and "fit" not in about:
            rows = _micro_batch(path.parents[2] / "recipe.yaml") or 1
            yield path, json.dumps({**about, "fit": {"tokens": _NO_TOKEN_LIMIT, "rows": rows}}) + "\n"


def _micro_batch(recipe: Path) -> int | None:
    try:
        return yaml.safe_load(recipe.read_text(encoding="utf-8"))["device"]["micro_batch"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def shorten_fronts(workspace: Workspace) -> Iterator[Change]:
    """A verdict repeated the scores on its front; it now has their steps, and `scores.jsonl` the scores."""
    for path in workspace.runs.glob("*/verdict.json"):
        verdict = _read(path)
        front = verdict.get("front") if verdict is not None else None
        if isinstance(front, list) and any(isinstance(entry, dict) for entry in front):
            steps = [entry["step"] if isinstance(entry, dict) else entry for entry in front]
            yield path, json.dumps({**verdict, "front": steps}, ensure_ascii=False, indent=1) + "\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


STEPS: tuple[Callable[[Workspace], Iterator[Change]], ...] = (name_devices_anew, note_micro_batches, shorten_fronts)
VERSION = len(STEPS)
