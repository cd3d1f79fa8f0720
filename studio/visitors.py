"""Who looks at the studio, and in which workspace: the owner, the teacher of a class, or one of its students.

`sweetspot studio` says by its environment what is served: SWEETSPOT_GATE is empty (this machine only), or names `share`, `class` or both.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import streamlit as st

from core.access.guesses import Guesses
from core.access.password import matches, stored_password
from core.access.secret_file import access_folder
from core.access.sessions import Sessions, Visitor
from core.classroom.room import Classroom, same_code
from core.errors import StudioError
from core.workspace import Workspace
from studio.i18n import t
from studio.launch import GATE, HOSTS, PORT

_making = threading.Lock()
_the_door: list[Door] = []


@dataclass(frozen=True)
class Entered:
    """Somebody who has come in: the token for the cookie, and the code they need to come back from another browser."""

    token: str
    name: str = ""
    new_code: str = ""


@dataclass(frozen=True)
class Door:
    """What decides who may come in. `hosts`: the names a browser may use for this server; empty for any."""

    workspace: Workspace
    sessions: Sessions
    guesses: Guesses
    room: Classroom | None = None
    needs_code: bool = False
    hosts: frozenset[str] = field(default_factory=frozenset)

    def knows_host(self, host: str | None) -> bool:
        """Whether a Host header is a name of this server, with or without a port, and nothing else besides."""
        try:
            parts = urlsplit(f"//{host or ''}")
            name = parts.hostname or ""
            if set(host or "") & set("/?#@\\") or (parts.port or 0) < 0:
                return False
        except ValueError:
            return False
        return not self.hosts or name.lower().rstrip(".") in self.hosts

    def is_code(self, typed: Mapping[str, str]) -> bool:
        """Whether a code of the class was typed, and not the password."""
        return "name" in typed and self.room is not None

    def enter(self, typed: Mapping[str, str]) -> Entered | None:
        """Compare what was typed: a password, or a name with a code; None when it was wrong.

        Raises:
            StudioError: the code was right and the name cannot be used.
        """
        if "name" in typed and self.room is not None:
            return self._enter_class(self.room, typed)
        stored = stored_password(self.workspace)
        if stored is None or not matches(typed.get("password", ""), stored):
            return None
        return Entered(self.sessions.sign_in("teacher" if self.room else "owner"))

    def _enter_class(self, room: Classroom, typed: Mapping[str, str]) -> Entered | None:
        if typed.get("own", "").strip():
            student = room.enter(typed["name"], typed["own"])
            return Entered(self.sessions.sign_in("student", student.slug), student.name) if student else None
        if self.needs_code and not same_code(typed.get("code", ""), room.settings().code):
            return None
        student, code = room.join(typed["name"])
        return Entered(self.sessions.sign_in("student", student.slug), student.name, code)


def is_gated() -> bool:
    return bool(os.environ.get(GATE))


def is_class() -> bool:
    return "class" in os.environ.get(GATE, "").split(",")


def cookie_name() -> str:
    """Browsers send the cookies of one port to all ports of a machine: two studios must not sign each other out."""
    return f"sweetspot_session_{os.environ.get(PORT) or 0}"


def door() -> Door:
    """The door of this server, made once."""
    with _making:
        if not _the_door:
            workspace = Workspace.open()
            folder = access_folder(workspace)
            hosts = frozenset(name.lower() for name in os.environ.get(HOSTS, "").split(",") if name)
            _the_door.append(Door(
                workspace, Sessions(folder / "sessions.json"), Guesses(folder / "guesses.json"),
                Classroom.open(workspace) if is_class() else None, "share" in os.environ.get(GATE, "").split(","), hosts))
        return _the_door[0]


def forget_door() -> None:
    """For tests that serve one studio after another in one process."""
    _the_door.clear()


def visitor() -> Visitor | None:
    """Who looks at this page; None where there is no gate, and for somebody whose session has ended."""
    return door().sessions.visitor(st.context.cookies.get(cookie_name())) if is_gated() else None


def is_teacher() -> bool:
    who = visitor()
    return who is not None and who.role == "teacher"


def open_workspace() -> Workspace:
    """The workspace of whoever looks at this page; the only way by which a page comes to one.

    Raises:
        StudioError: it cannot be written.
    """
    who = visitor()
    if who is None and is_gated():
        st.stop()  # the gate lets nobody come as far; should it ever, nothing is drawn
    if who is not None and who.role == "student":
        room = Classroom(door().workspace)
        try:
            return room.workspace_of(who.student)
        except StudioError:
            if room.student(who.student) is not None:
                raise
        door().sessions.sign_out_everybody(student=who.student)  # removed while their page was open
        st.error(t("gate.removed"), icon=":material/person_remove:")
        st.stop()
    return Workspace.open()


def class_here() -> Classroom | None:
    """The class that this server serves; None when it serves none."""
    return door().room if is_class() else None
