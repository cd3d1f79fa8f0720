"""What to do when no snapshot is good, in the order in which it helped when it was measured (docs/checkpoints.md, section 6). No torch."""

from __future__ import annotations

from typing import Any, Literal

from core.data.library import IDENTITY, load_dataset
from core.errors import StudioError
from core.runs import Run
from core.workspace import Workspace

Remedy = Literal["replay", "collect", "weaker", "longer"]

# Recipe that mixes the base model's own answers in, half and half.
REPLAY_PRESET = "identity-lesson-replay"
# Strength at which a collapsed adapter was as good as its run's best snapshot.
RESCUE_STRENGTH = 0.4


def remedies(workspace: Workspace, run: Run, verdict: dict[str, Any]) -> list[Remedy]:
    """Ways out of a verdict, best first; none for a run with a good snapshot.

    `replay`: train again with the base model's own answers, which the dataset already has. `collect`: collect such answers first.
    `weaker`: merge a late snapshot at reduced strength. `longer`: train on.
    """
    if verdict["verdict"] == "recommended":
        return []
    if verdict["verdict"] == "not_learned":
        return ["longer"]
    found: list[Remedy] = []
    if is_identity_only(run):
        found.append("replay" if _has_other_rows(workspace, run) else "collect")
    if run.recipe().method.kind == "lora":
        found.append("weaker")
    return found


def is_identity_only(run: Run) -> bool:
    """Whether nothing but identity rows was trained on."""
    return all(source["groups"] == [IDENTITY] for source in run.dataset()["sources"])


def _has_other_rows(workspace: Workspace, run: Run) -> bool:
    try:
        groups = load_dataset(workspace, dataset_of(run)).card.groups
    except StudioError:
        return False
    return any(count for group, count in groups.items() if group != IDENTITY)


def dataset_of(run: Run) -> str:
    """The dataset that a run was trained on, the first of several."""
    return str(run.dataset()["sources"][0]["dataset"])
