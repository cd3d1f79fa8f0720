"""The models one can put side by side: bases, every checkpoint of the newest runs, merged models, endpoints. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.chat.endpoint import PREFIX, is_endpoint, is_own_or_named, read_endpoint
from core.errors import StudioError
from core.models.catalogue import Model, find_model, list_models
from core.models.embedded import EMBEDDED_NAME
from core.runs import Run, find_run, list_runs
from core.workspace import Workspace

MOST_PANES = 4
# Checkpoints of older runs are reached by their reference; a list of thousands helps nobody.
_NEWEST_RUNS = 20


@dataclass(frozen=True)
class Choice:
    """One model to choose.

    Attributes:
        reference: what `find_model` understands.
        kind: `base`, `checkpoint`, `merged`, or `endpoint`: a model that another server answers for.
        run: the run of a checkpoint.
        step: its update.
        mark: `pick` when the verdict chose it, `last` for the last one.
    """

    reference: str
    kind: Literal["base", "checkpoint", "merged", "endpoint"]
    run: str = ""
    step: int = 0
    strength: float = 1.0
    mark: Literal["", "pick", "last"] = ""


def list_choices(workspace: Workspace) -> list[Choice]:
    """Bases first, then checkpoints of the newest runs, newest run first, then merged models."""
    bases, merged = [], []
    for name, folder, header in list_models(workspace):
        if isinstance(header, StudioError) or not header.has_chat_template:
            continue
        if (folder / "merge.json").exists():
            merged.append(Choice(name, "merged"))
        else:
            bases.append(Choice("embedded" if name == EMBEDDED_NAME else name, "base"))
    checkpoints = [choice for run in list_runs(workspace)[:_NEWEST_RUNS] for choice in _checkpoints(run)]
    return sorted(bases, key=lambda choice: choice.reference != "embedded") + checkpoints + merged


def _checkpoints(run: Run) -> list[Choice]:
    saved = run.checkpoints()
    pick = _picked_step(run)
    return [Choice(f"{run.id}@{item.step}", "checkpoint", run.id, item.step,
                   mark="pick" if item.step == pick else "last" if item is saved[-1] else "") for item in saved]


def _picked_step(run: Run) -> int | None:
    try:
        verdict = run.verdict()
    except (OSError, ValueError):
        return None
    return verdict["pick"]["step"] if verdict and verdict.get("pick") else None


def default_choices(choices: list[Choice]) -> list[str]:
    """Base, the newest pick, and a merged model: what a visitor came to compare."""
    base = [choice.reference for choice in choices if choice.kind == "base"][:1]
    picks = [choice.reference for choice in choices if choice.mark == "pick"][:1]
    merged = [choice.reference for choice in choices if choice.kind == "merged"][:1]
    return base + picks + merged


def resolve_choice(workspace: Workspace, choices: list[Choice], reference: str, is_typed: bool = False) -> Choice:
    """The choice that `reference` means: `RUN@pick` becomes the step that was picked.

    Args:
        is_typed: the user wrote it into the page himself. An address, which may be somebody else's link, reaches endpoints of this
            machine only.

    Raises:
        StudioError: nothing here answers to it. Nothing is ever fetched from a hub: an address must not cause a download.
    """
    if is_endpoint(reference):
        endpoint = read_endpoint(reference)
        if not is_typed and not is_own_or_named(endpoint):
            raise StudioError("The link names a model on another computer, {url}: your questions would go there.",
                              "If you trust it, type it into the list of models yourself.", url=endpoint.url[:200])
        return Choice(f"{PREFIX}{endpoint.url}#{endpoint.model}", "endpoint")
    known = {choice.reference: choice for choice in choices}
    if reference in known:
        return known[reference]
    model = local_model(workspace, reference)
    if "@" not in reference:
        kind = "merged" if (model.base / "merge.json").exists() else "base"
        canonical = "embedded" if reference == EMBEDDED_NAME else reference
        return known.get(canonical) or Choice(canonical, kind)
    if model.adapter is None and model.base.parent.name != "checkpoints":
        run = find_run(workspace, reference.partition("@")[0]).id
        return known.get(f"{run}@0") or Choice(f"{run}@0", "checkpoint", run, 0)  # step 0 is the base itself
    checkpoint = model.adapter or model.base
    run = checkpoint.parent.parent.name
    canonical = f"{run}@{int(checkpoint.name)}"
    if model.strength != 1.0:
        return Choice(f"{canonical}*{model.strength:g}", "checkpoint", run, int(checkpoint.name), model.strength)
    return known.get(canonical) or Choice(canonical, "checkpoint", run, int(checkpoint.name))


def local_model(workspace: Workspace, reference: str) -> Model:
    """`find_model` without its way to the hub.

    Raises:
        StudioError: nothing here answers to it.
    """
    if "@" not in reference and "/" in reference and not Path(reference).expanduser().is_absolute():
        raise StudioError("The model {name} is not on this machine yet.",
                          "Fetch it first: `sweetspot models add {name}`.", name=reference[:200])
    return find_model(workspace, reference)
