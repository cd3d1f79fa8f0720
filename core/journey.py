"""Where on the path somebody is: data, recipe, train, compare, merge, chat; what is done, what runs, what comes next.

Read from the workspace alone, so every tab and every restart tells the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.jobs.active import active_jobs
from core.runs import Run
from core.workspace import Workspace, read_json

STAGES = ("data", "recipe", "train", "compare", "merge", "chat")
StageState = Literal["done", "running", "next", "open"]
# Which stage a job works for; a lesson works for all of them, through other jobs.
_STAGE_OF_KIND = {"prepare": "data", "replay": "data", "train": "train", "judge": "compare", "merge": "merge", "ask": "chat"}


@dataclass(frozen=True)
class Stage:
    """One stop of the path."""

    name: str
    state: StageState


def read_journey(workspace: Workspace, run_id: str | None = None) -> list[Stage]:
    """The stages in order, as seen from one run (the newest when none is named or it is gone)."""
    run = _run_in_view(workspace, run_id)
    running = {_STAGE_OF_KIND.get(state.kind) for _, state in active_jobs(workspace)}
    done = {
        "data": any(workspace.datasets.glob("*/card.json")),
        "recipe": run is not None or any(workspace.recipes.glob("*.yaml")),
        "train": run is not None and any((run.folder / "checkpoints").glob("[0-9]*")),
        "compare": run is not None and (run.folder / "verdict.json").exists(),
        "merge": run is not None and _is_merged(workspace, run),
        "chat": any(workspace.jobs.glob("*-ask-*")),
    }
    stages: list[Stage] = []
    for name in STAGES:
        has_next = any(stage.state == "next" for stage in stages)
        state: StageState = "running" if name in running else "done" if done[name] else "open" if has_next else "next"
        stages.append(Stage(name, state))
    return stages


def _run_in_view(workspace: Workspace, run_id: str | None) -> Run | None:
    ids = [folder.name for folder in workspace.runs.iterdir() if (folder / "spec.json").exists()]
    if not ids:
        return None
    return Run(workspace.runs / (run_id if run_id in ids else max(ids)))


def _is_merged(workspace: Workspace, run: Run) -> bool:
    """Whether a model of the workspace was merged from this run."""
    return any(str(read_json(report).get("model", "")).startswith(f"{run.id}@") for report in workspace.models.glob("*/merge.json"))
