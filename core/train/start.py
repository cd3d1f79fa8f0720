"""From a choice on the page to a running training: the recipe on its dataset, what it will do, and never twice at once."""

from __future__ import annotations

from core.data.library import load_dataset
from core.jobs.active import active_jobs, newest_job
from core.jobs.folder import Job
from core.jobs.launch import start_job
from core.jobs.once import one_at_a_time
from core.lesson import judge_job_of, newest_lesson, read_lesson
from core.recipe.files import change_recipe
from core.recipe.plan import Plan, plan_updates
from core.recipe.schema import Recipe
from core.runs import Run
from core.train.create import start_run
from core.workspace import Workspace


def on_dataset(recipe: Recipe, dataset: str) -> Recipe:
    """The recipe with `dataset` in every source; unchanged when empty."""
    if not dataset:
        return recipe
    return change_recipe(recipe, {f"data.sources[{index}].dataset": dataset for index in range(len(recipe.data.sources))})


def plan_on_disk(workspace: Workspace, recipe: Recipe) -> Plan:
    """What the recipe will do with the datasets that are here; reads their cards, not their rows.

    Raises:
        StudioError: a dataset is missing, or no row is selected.
    """
    rows = 0
    for source in recipe.data.sources:
        card = load_dataset(workspace, source.dataset).card
        rows += card.rows if source.groups is None else sum(card.groups.get(group, 0) for group in source.groups)
    return plan_updates(recipe, rows)


def start_once(workspace: Workspace, recipe: Recipe, name: str = "") -> tuple[Run, bool]:
    """Start a training, unless this very recipe is waiting or running already.

    Returns:
        The run, and whether this call started it.

    Raises:
        StudioError: as `create_run` does.
    """
    with one_at_a_time(workspace, "train"):
        for job, state in active_jobs(workspace):
            if state.kind == "train" and Run(job.folder).recipe() == recipe and job.spec().get("name", "") == name:
                return Run(job.folder), False
        return start_run(workspace, recipe, name), True


def newest_judging(workspace: Workspace, run: Run) -> Job | None:
    """The newest job that judges this run, whatever has become of it."""
    return newest_job(workspace, "judge", run=run.id)


def judge_once(workspace: Workspace, run: Run) -> Job:
    """Start judging a run, or give the job that is doing it."""
    with one_at_a_time(workspace, "judge"):
        known = newest_judging(workspace, run)
        if known is not None and known.state().is_active:
            return known
        job = judge_job_of(workspace, run)
        start_job(job)
        return job


def is_in_lesson(workspace: Workspace, run: Run) -> bool:
    """Whether a lesson is under way that will judge this run itself."""
    lesson = newest_lesson(workspace)
    if lesson is None or not lesson.state().is_active:
        return False
    return any(part.get("folder") == str(run.folder) for part in read_lesson(lesson)["parts"].values())
