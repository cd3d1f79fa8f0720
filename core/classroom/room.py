"""The class itself: who is in it, what each may use, the codes by which they come in.

    class.json                       ClassSettings
    students/<name>/student.json     Student; the code only as a salted hash
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from core.access.password import hash_password, matches
from core.access.secret_file import write_secret
from core.classroom.place import CLASS_FILE, STUDENT_FILE, STUDENTS, TEACHER, share_models
from core.errors import StudioError
from core.jobs.once import one_at_a_time
from core.workspace import Workspace, check_name, read_json, slug

LONGEST_NAME = 40
# Without 0 O 1 I L: codes are read from a projector and typed.
_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
_CODE_LENGTH = 8
MOST_STUDENTS = 200


class ClassSettings(BaseModel):
    """What the teacher decides for everybody. Sizes in bytes."""

    code: str
    created: float
    disk_bytes: int = Field(5_000_000_000, ge=10_000_000)
    memory_bytes: int = Field(6_000_000_000, ge=100_000_000)
    leaderboard_is_shown: bool = True


class Student(BaseModel):
    """One student. `slug` is the workspace's folder, `name` what they typed."""

    slug: str
    name: str
    code_hash: str
    joined: float


def new_code() -> str:
    """A code that nobody guesses while guesses are slowed down: 8 of 31 letters, about 40 bits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_CODE_LENGTH))


def same_code(given: str, code: str) -> bool:
    """Whether somebody typed `code`; small letters, spaces and dashes do not matter."""
    return secrets.compare_digest(_tidy_code(given).encode(), code.encode())


def _tidy_code(code: str) -> str:
    return re.sub(r"[\s-]", "", code).upper()[:64]


def student_slug(name: str) -> str:
    """The folder's name for a student: "Ana Li" -> "ana-li". Names in other scripts get letters of their hash."""
    plain = unicodedata.normalize("NFC", name).strip().casefold()
    short = slug(plain)[:40].rstrip("-._")
    if re.fullmatch(r"[a-z0-9]+([ -][a-z0-9]+)*", plain):
        return short
    return "-".join(part for part in (short, hashlib.sha256(plain.encode()).hexdigest()[:6]) if part)


def tidy_name(name: str) -> str:
    """A name as it is kept: composed letters, single spaces.

    Raises:
        StudioError: it is empty, too long, or has letters that cannot be shown.
    """
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise StudioError("{name!r} cannot be a name here.", "Type your name with up to {most} letters.",
                          name=name[:LONGEST_NAME], most=LONGEST_NAME)
    return name


@dataclass(frozen=True)
class Classroom:
    """A class and its folder, which is the teacher's workspace."""

    workspace: Workspace

    @classmethod
    def open(cls, workspace: Workspace) -> Classroom:
        """The class of this workspace; made at the first call."""
        if not (workspace.root / CLASS_FILE).exists():
            write_secret(workspace.root / CLASS_FILE, ClassSettings(code=new_code(), created=time.time()).model_dump())
        room = cls(workspace)
        room.folder.mkdir(exist_ok=True)
        return room

    @property
    def folder(self) -> Path:
        return self.workspace.root / STUDENTS

    def settings(self) -> ClassSettings:
        """What the teacher decided.

        Raises:
            StudioError: the file is damaged.
        """
        path = self.workspace.root / CLASS_FILE
        try:
            return ClassSettings.model_validate(read_json(path))
        except (OSError, ValueError) as error:
            raise StudioError("The settings of the class cannot be read: {path} is damaged.",
                              "Delete the file and start again with `sweetspot studio --class`; the students' work stays.",
                              path=path) from error

    def change(self, **fields: object) -> ClassSettings:
        """Change settings; returns all of them."""
        with one_at_a_time(self.workspace, "class"):
            settings = ClassSettings.model_validate({**self.settings().model_dump(), **fields})
            write_secret(self.workspace.root / CLASS_FILE, settings.model_dump())
        return settings

    def students(self) -> list[Student]:
        """Everybody who has joined, by name; a damaged entry is left out."""
        found = [self.student(folder.name) for folder in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((student for student in found if student is not None), key=lambda student: student.name.casefold())

    def student(self, slug_: str) -> Student | None:
        try:
            check_name(slug_, "student")
            return Student.model_validate(read_json(self.folder / slug_ / STUDENT_FILE))
        except (OSError, ValueError, StudioError):
            return None

    def join(self, name: str) -> tuple[Student, str]:
        """Make a workspace for somebody new; returns the student and the code by which they come back, which is kept only as a hash.

        Raises:
            StudioError: the name is empty, too long or taken, or the class is full.
        """
        name = tidy_name(name)
        with one_at_a_time(self.workspace, "join"):
            folder = self.folder / student_slug(name)
            if (folder / STUDENT_FILE).exists():
                raise StudioError("{name} is in the class already.",
                                  "If that is you, type your own code too; your teacher can give you a new one. "
                                  "Else add a letter to your name.",
                                  name=name)
            if len(self.students()) >= MOST_STUDENTS:
                raise StudioError("The class is full: {most} students.", "Ask your teacher to remove somebody who has left.",
                                  most=MOST_STUDENTS)
            code = new_code()
            student = Student(slug=folder.name, name=name, code_hash=hash_password(code), joined=time.time())
            Workspace.open(folder)
            write_secret(folder / STUDENT_FILE, student.model_dump())
        return student, code

    def enter(self, name: str, code: str) -> Student | None:
        """The student of this name when the code is theirs; None else, and nothing tells which of the two was wrong."""
        student = self.student(student_slug(name))
        is_theirs = matches(_tidy_code(code), student.code_hash if student else _NOBODY)
        return student if is_theirs else None

    def renew_code(self, slug_: str) -> str:
        """Another code for a student who has lost theirs; the old one no longer works."""
        student = self.student(slug_)
        if student is None:
            raise StudioError("Nobody of the class is called {name}.", "The wall lists everybody.", name=slug_)
        code = new_code()
        write_secret(self.folder / slug_ / STUDENT_FILE, student.model_copy(update={"code_hash": hash_password(code)}).model_dump())
        return code

    def workspace_of(self, slug_: str) -> Workspace:
        """A student's workspace, with the class's models in it.

        Raises:
            StudioError: there is no such student.
        """
        if self.student(slug_) is None:
            raise StudioError("Nobody of the class is called {name}.", "The wall lists everybody.", name=slug_)
        workspace = Workspace.open(self.folder / slug_)
        share_models(workspace)
        return workspace

    def members(self) -> list[tuple[str, Workspace]]:
        """(name in the queue, workspace) of the teacher and of everybody who has joined."""
        return [(TEACHER, self.workspace), *((student.slug, Workspace(self.folder / student.slug)) for student in self.students())]


# A guess at a name that nobody has takes as long as one at a code that somebody has.
_NOBODY = hash_password(secrets.token_hex(16))
