"""Take a student off the class, and back: the whole workspace goes to the class's trash, and lies there until that is emptied."""

from __future__ import annotations

from dataclasses import dataclass

from core.classroom.place import STUDENT_FILE, STUDENTS
from core.classroom.room import Classroom, Student
from core.errors import StudioError
from core.housekeeping.room import freed_bytes
from core.housekeeping.trash import Thrown, list_trash, restore, throw_away
from core.housekeeping.uses import chat_folders
from core.jobs.folder import list_jobs
from core.jobs.once import one_at_a_time
from core.workspace import Workspace, read_json


@dataclass(frozen=True)
class Belongings:
    """What goes with a student: how many runs, datasets, recipes and models of their own, and the bytes that come back."""

    runs: int
    datasets: int
    recipes: int
    models: int
    freed_bytes: int


@dataclass(frozen=True)
class Removed:
    """A student who was taken off the class and can come back."""

    student: Student
    thrown: Thrown


def belongings(room: Classroom, slug: str) -> Belongings:
    """What would go with this student.

    Raises:
        StudioError: there is no such student.
    """
    student = _student(room, slug)
    workspace = Workspace(room.folder / student.slug)
    models = [folder for folder in workspace.models.glob("[!.]*") if not folder.is_symlink()]
    return Belongings(
        sum(1 for _ in workspace.runs.glob("*/spec.json")), sum(1 for _ in workspace.datasets.glob("*/card.json")),
        sum(1 for _ in workspace.recipes.glob("*.yaml")), len(models), freed_bytes([workspace.root]))


def remove_student(room: Classroom, slug: str) -> Removed:
    """Move a student's workspace to the trash of the class.

    Raises:
        StudioError: there is no such student, a job of theirs is at work, or the chat or a server holds a model of theirs.
    """
    with one_at_a_time(room.workspace, "join"):
        student = _student(room, slug)
        workspace = Workspace(room.folder / student.slug)
        at_work = next((job for job in list_jobs(workspace) if job.state().is_active or job.has_worker()), None)
        if at_work is not None:
            raise StudioError("A job of {name} is at work: {job}.",
                              "Stop it first (Class, Queue), or wait for its end; nothing was removed.", name=student.name, job=at_work.id)
        if chat_folders(workspace):
            raise StudioError("The chat or a server holds a model of {name} in memory.",
                              "The chat lets go of it ten minutes after the last question; nothing was removed.", name=student.name)
        return Removed(student, throw_away(room.workspace, workspace.root))


def list_removed(room: Classroom) -> list[Removed]:
    """Everybody who was removed and lies in the trash, the last one first."""
    found = []
    for thrown in reversed(list_trash(room.workspace)):
        if thrown.origin.startswith(f"{STUDENTS}/"):
            try:
                found.append(Removed(Student.model_validate(read_json(thrown.folder / STUDENT_FILE)), thrown))
            except (OSError, ValueError):
                continue  # being emptied just now
    return found


def bring_back(room: Classroom, name: str) -> Student:
    """Put a removed student back with all their work; their own code works again. Of several of one name, the one removed last.

    Args:
        room: the class.
        name: of the student's folder.

    Raises:
        StudioError: nobody of this name was removed, or somebody else has the name now.
    """
    with one_at_a_time(room.workspace, "join"):
        found = next((removed for removed in list_removed(room) if removed.student.slug == name), None)
        if found is None:
            raise StudioError("Nobody called {name} lies in the trash of the class.", "`sweetspot workspace trash list` shows what does.",
                              name=name)
        if room.student(name) is not None:
            raise StudioError("Somebody else is called {name} now.", "Remove them first; the older work stays in the trash as long.",
                              name=found.student.name)
        restore(room.workspace, found.thrown)
    return found.student


def _student(room: Classroom, slug: str) -> Student:
    student = room.student(slug)
    if student is None:
        raise StudioError("Nobody of the class is called {name}.", "The wall lists everybody.", name=slug)
    return student
