"""What students show each other: a judged run, by its owner's word and until they take it back, to be read only.

    <workspace>/shared.json    ids of the runs that everybody in the class may see

Seen are the verdict, the recipe, and every question with every answer. Datasets and weights stay their owner's.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.classroom.place import TEACHER, class_root
from core.classroom.room import Classroom
from core.errors import StudioError
from core.jobs.once import one_at_a_time
from core.judge.verdict import Verdict
from core.recipe.files import load_recipe, save_recipe
from core.runs import Run
from core.workspace import Workspace, check_name, read_json, write_json

SHARED_FILE = "shared.json"


@dataclass(frozen=True)
class SharedRun:
    """A run that its owner shows to the class. `slug`: the owner's name in the queue; `name`: what they typed, empty for the teacher."""

    slug: str
    name: str
    workspace: Workspace
    run: Run
    title: str
    verdict: Verdict


def shared_ids(workspace: Workspace) -> list[str]:
    """The runs of a workspace that its owner shows."""
    try:
        named = read_json(workspace.root / SHARED_FILE)["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def share_run(workspace: Workspace, run: Run, is_shared: bool) -> None:
    """Show a run to the class, or no longer.

    Raises:
        StudioError: the workspace is in no class, or the run is not judged yet.
    """
    if class_root(workspace) is None:
        raise StudioError("The workspace {root} is no class yet.", "`sweetspot studio --class` makes it one.", root=workspace.root)
    if is_shared and run.verdict() is None:
        raise StudioError("The run {run} has no verdict to show yet.", "Run `sweetspot judge {run}` first, or Compare on the page.",
                          run=run.id)
    with one_at_a_time(workspace, "share"):
        others = [name for name in shared_ids(workspace) if name != run.id]
        write_json(workspace.root / SHARED_FILE, {"runs": [*others, *([run.id] if is_shared else [])]})


def shared_runs(room: Classroom) -> list[SharedRun]:
    """Everything that is shown in the class, the teacher's first, each student's newest first; broken or deleted runs are left out."""
    people = [(TEACHER, "", room.workspace), *((student.slug, student.name, Workspace(room.folder / student.slug))
                                               for student in room.students())]
    found = []
    for slug, name, workspace in people:
        for run_id in sorted(shared_ids(workspace), reverse=True):
            try:
                folder = workspace.runs / check_name(run_id, "run")
                if folder.is_symlink():
                    continue
                run = Run(folder)
                found.append(SharedRun(slug, name, workspace, run, run.recipe().title or "", Verdict.model_validate(run.verdict())))
            except (OSError, ValueError, StudioError):
                continue
    return found


def find_shared(room: Classroom, slug: str, run_id: str) -> SharedRun:
    """One shared run; asked anew at every look, so that who takes it back is obeyed at once.

    Raises:
        StudioError: it is not shared, or no longer.
    """
    for shared in shared_runs(room):
        if (shared.slug, shared.run.id) == (slug, run_id):
            return shared
    raise StudioError("The run {run} is not shared with the class.", "Its owner may have taken it back; the list shows what is.",
                      run=run_id)


def take_recipe(shared: SharedRun, workspace: Workspace) -> str:
    """Copy the recipe of a shared run into another workspace; returns its name there.

    Raises:
        StudioError: there is a recipe of that name already.
    """
    name = f"{'teacher' if shared.slug == TEACHER else shared.slug}-{shared.run.id}"[:80].rstrip("-._")
    save_recipe(workspace, name, load_recipe(shared.run.folder / "recipe.yaml"), replace=False)
    return name
