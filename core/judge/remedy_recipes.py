"""New recipes out of a run that went wrong, ready to be trained. No torch."""

from __future__ import annotations

from core.data.library import GENERAL, NEAR, load_dataset
from core.data.store import start_reminders, start_replay_dataset
from core.data.wordings import shipped_languages
from core.errors import StudioError
from core.jobs.folder import Job
from core.recipe.files import change_recipe, load_recipe, save_recipe
from core.recipe.schema import Recipe
from core.runs import Run
from core.workspace import Workspace, read_json

_OTHERS = (NEAR, GENERAL)


def has_replay(workspace: Workspace, run: Run) -> bool:
    """Whether the run was reminded of what the base model was: whether near rows, or general ones by name, were trained on.

    Rows of a user's own data, whose groups the recipe does not name, are the task itself.
    """
    for source in run.dataset()["sources"]:
        if source["groups"] is None:
            path = workspace.datasets / str(source["dataset"]) / "card.json"
            if path.exists() and NEAR in read_json(path).get("groups", {}):
                return True
        elif set(_OTHERS) & set(source["groups"]):
            return True
    return False


def replay_source(workspace: Workspace, run: Run) -> dict[str, object] | None:
    """Where the base model's own answers are: the run's dataset, or the one that was made for it; None when they must be collected.

    Raises:
        StudioError: the run's dataset is gone.
    """
    dataset = load_dataset(workspace, str(run.dataset()["sources"][0]["dataset"]))
    groups = [group for group in _OTHERS if dataset.card.groups.get(group)]
    if _takes_groups(run) and groups:
        return {"dataset": dataset.card.name, "groups": groups}
    made = _own_answers(dataset.card.name)
    if not _takes_groups(run) and (workspace.datasets / made / "card.json").exists():
        return {"dataset": made, "groups": None}
    return None


def collect_replay(workspace: Workspace, run: Run) -> Job:
    """Start a job that lets the base model answer near and general questions: into the run's dataset where its recipe names groups, else
    into a dataset beside it.

    Raises:
        StudioError: the dataset is gone, or has all of these questions already.
    """
    dataset = load_dataset(workspace, str(run.dataset()["sources"][0]["dataset"]))
    model = run.recipe().model.source
    if _takes_groups(run):
        return start_reminders(workspace, dataset.card.name, model)
    languages = [code for code in dataset.card.languages if code in shipped_languages()] or ["en"]
    return start_replay_dataset(workspace, _own_answers(dataset.card.name), languages, model)


def _takes_groups(run: Run) -> bool:
    """Whether the recipe names its groups, so that rows that are added to the dataset do not slip into its sources."""
    return all(source.groups is not None for source in run.recipe().data.sources)


def _own_answers(dataset: str) -> str:
    return f"{dataset}-own-answers"


def replay_recipe(workspace: Workspace, run: Run) -> Recipe:
    """The run's recipe with the base model's own answers mixed in, one to one: an update sees as many rows of the task as before.

    Raises:
        StudioError: the answers are not collected yet.
    """
    source = replay_source(workspace, run)
    if source is None:
        raise StudioError("The base model's own answers are not collected yet.", "Run `sweetspot remedy {run} replay`, which does it.",
                          run=run.id)
    recipe = run.recipe()
    sources = [given.model_dump() for given in recipe.data.sources]
    weight = sum(given.weight for given in recipe.data.sources)
    return change_recipe(recipe, {
        "data.sources": [*sources, {**source, "weight": weight}], "schedule.effective_batch": 2 * recipe.schedule.effective_batch,
        "probes.dataset": recipe.probe_dataset, "title": _titled(recipe, "with its own answers")})


def half_rate_recipe(run: Run) -> Recipe:
    """The run's recipe at half the learning rate over twice the length: the same way, in steps half as long."""
    recipe = run.recipe()
    schedule = recipe.schedule
    length = {"schedule.updates": 2 * schedule.updates} if schedule.updates else {"schedule.epochs": 2 * (schedule.epochs or 1)}
    return change_recipe(recipe, {"schedule.learning_rate": schedule.learning_rate / 2, **length,
                                  "title": _titled(recipe, "half the rate")})


def _titled(recipe: Recipe, what: str) -> str:
    return f"{recipe.title or recipe.data.sources[0].dataset}, {what}"


def keep_recipe(workspace: Workspace, run: Run, recipe: Recipe, suffix: str) -> str:
    """Save a recipe under a free name made of the run's dataset; returns the name. The same recipe is not saved twice."""
    wanted = f"{run.recipe().data.sources[0].dataset}-{suffix}"
    for path in sorted(workspace.recipes.glob(f"{wanted}*.yaml")):
        try:
            if load_recipe(path) == recipe:
                return path.stem
        except StudioError:
            continue  # somebody is editing it
    taken = {path.stem for path in workspace.recipes.glob("*.yaml")}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    save_recipe(workspace, name, recipe, replace=False)
    return name
