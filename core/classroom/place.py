"""Which class a workspace belongs to, told from where it lies on disk: workers, pages and commands all find the same.

    workspace/class.json           this workspace is a class's; the teacher works in it
    workspace/students/<name>/     a student's workspace, of the same shape, with `student.json`
"""

from __future__ import annotations

from pathlib import Path

from core.workspace import Workspace, check_name

CLASS_FILE = "class.json"
STUDENTS = "students"
STUDENT_FILE = "student.json"
# No student can have this name: names begin with a letter or a digit.
TEACHER = "_teacher"


def class_root(workspace: Workspace) -> Path | None:
    """The folder of the class that this workspace is part of; None when it is nobody's class."""
    if workspace.root.parent.name == STUDENTS and (workspace.root.parent.parent / CLASS_FILE).exists():
        return workspace.root.parent.parent
    return workspace.root if (workspace.root / CLASS_FILE).exists() else None


def member_of(workspace: Workspace) -> str:
    """The name under which a workspace of a class waits in its queue."""
    return TEACHER if class_root(workspace) == workspace.root else workspace.root.name


def student_of(workspace: Workspace) -> str:
    """The student whose workspace this is; empty for a teacher and outside a class."""
    return "" if models_home(workspace) == workspace else workspace.root.name


def student_workspace(home: Workspace, student: str) -> Workspace:
    """The workspace of a student of the class in `home`; `home` itself for nobody.

    Raises:
        StudioError: this cannot be a student's name.
    """
    return Workspace(home.root / STUDENTS / check_name(student, "student")) if student else home


def models_home(workspace: Workspace) -> Workspace:
    """The workspace whose base models this one uses: the class's for a student, else its own."""
    root = class_root(workspace)
    return workspace if root is None or root == workspace.root else Workspace(root)


def share_models(workspace: Workspace) -> None:
    """Show the class's models in a student's workspace: links, no copies. A model of the student's own keeps its name."""
    home = models_home(workspace)
    if home == workspace or not home.models.is_dir():
        return
    for folder in home.models.iterdir():
        link = workspace.models / folder.name
        if folder.is_dir() and not folder.name.startswith(".") and not link.is_symlink() and not link.exists():
            try:
                link.symlink_to(Path("..", "..", "..", "models", folder.name))
            except FileExistsError:
                pass  # another page of the same student was faster
    for link in workspace.models.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)  # the class has it no longer
