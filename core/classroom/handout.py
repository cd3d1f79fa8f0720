"""Give a dataset or a recipe of the teacher's to the students: a copy each, which is then theirs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from core.classroom.room import Classroom
from core.data.library import load_dataset
from core.errors import StudioError
from core.recipe.files import recipe_path
from core.workspace import Workspace, check_name, fill_folder, write_text

Outcome = Literal["given", "had_it", "has_another", "failed"]


@dataclass(frozen=True)
class Handed:
    """What became of one student's copy; `error` says why it failed."""

    student: str
    outcome: Outcome
    error: StudioError | None = None


def hand_out_dataset(room: Classroom, name: str, students: Sequence[str] | None = None) -> list[Handed]:
    """Copy the teacher's dataset into each student's workspace; who has one of this name keeps it.

    Raises:
        StudioError: the teacher has no such dataset.
    """
    source = load_dataset(room.workspace, name)

    def give(workspace: Workspace) -> Outcome:
        target = workspace.datasets / source.card.name
        if target.exists():
            return "had_it" if load_dataset(workspace, source.card.name).card.sha256 == source.card.sha256 else "has_another"
        with fill_folder(target) as folder:
            for path in source.folder.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    shutil.copyfile(path, folder / path.name)
        return "given"

    return _each(room, students, give)


def hand_out_recipe(room: Classroom, name: str, students: Sequence[str] | None = None) -> list[Handed]:
    """Copy a recipe, the teacher's or a preset, into each student's workspace; who has one of this name keeps it.

    Raises:
        StudioError: there is no such recipe.
    """
    text = recipe_path(room.workspace, check_name(name, "recipe")).read_text(encoding="utf-8")

    def give(workspace: Workspace) -> Outcome:
        target = workspace.recipes / f"{name}.yaml"
        if target.exists():
            return "had_it" if target.read_text(encoding="utf-8") == text else "has_another"
        write_text(target, text)
        return "given"

    return _each(room, students, give)


def _each(room: Classroom, students: Sequence[str] | None, give: Callable[[Workspace], Outcome]) -> list[Handed]:
    handed = []
    for student in room.students():
        if students is not None and student.slug not in students:
            continue
        try:
            handed.append(Handed(student.slug, give(room.workspace_of(student.slug))))
        except StudioError as error:  # a full share must not keep the others from theirs
            handed.append(Handed(student.slug, "failed", error))
    return handed
