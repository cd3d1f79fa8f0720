"""Who is signed in: a random token in the browser's cookie, its SHA-256 in `access/sessions.json` (mode 0600).

A session ends after a while without a sign of life, after a longer while in any case, and at once when it is signed out.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from core.access.secret_file import read_secret, write_secret

IDLE_SECONDS = 2 * 3600.0
ABSOLUTE_SECONDS = 12 * 3600.0
_SEEN_EVERY_SECONDS = 60.0  # the file need not know each click
_MOST = 2000
_MOST_OF_ONE_STUDENT = 20  # who signs in again and again must not push the others out

Role = Literal["owner", "teacher", "student"]


class Visitor(BaseModel):
    """Somebody who is signed in. `student` is the name of the workspace; empty for owner and teacher."""

    role: Role
    student: str = ""
    created: float
    seen: float


class Sessions:
    """The sessions of one studio. Safe to use from several threads."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, idle_seconds: float = IDLE_SECONDS,
                 absolute_seconds: float = ABSOLUTE_SECONDS) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self.idle_seconds, self.absolute_seconds = idle_seconds, absolute_seconds
        self._visitors: dict[str, Visitor] = {}
        known = read_secret(path)
        for key, value in known.items() if isinstance(known, dict) else ():
            try:
                self._visitors[str(key)] = Visitor.model_validate(value)
            except ValidationError:
                continue  # whoever it was signs in again
        self._kept = 0.0

    def sign_in(self, role: Role, student: str = "") -> str:
        """A new session; returns the token for the cookie, which is kept nowhere."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            if role == "student":
                own = sorted((key for key, known in self._visitors.items() if known.student == student),
                             key=lambda key: self._visitors[key].seen)
                for key in own[:max(0, len(own) - _MOST_OF_ONE_STUDENT + 1)]:
                    del self._visitors[key]
            self._visitors[_digest(token)] = Visitor(role=role, student=student, created=now, seen=now)
            self._keep(now)
        return token

    def visitor(self, token: str | None) -> Visitor | None:
        """Who holds this token; None when nobody, or no longer."""
        if not token or len(token) > 200:
            return None
        with self._lock:
            found = self._visitors.get(_digest(token))
            return found if found and self._is_valid(found, self._clock()) else None

    def touch(self, token: str) -> None:
        """Its holder has done something: the idle time begins anew."""
        now = self._clock()
        with self._lock:
            found = self._visitors.get(_digest(token))
            if found and self._is_valid(found, now):
                found.seen = now
                if now - self._kept > _SEEN_EVERY_SECONDS:
                    self._keep(now)

    def sign_out(self, token: str) -> None:
        with self._lock:
            if self._visitors.pop(_digest(token), None):
                self._keep(self._clock())

    def sign_out_everybody(self, *, student: str | None = None) -> None:
        """End the sessions of one student, or all of them: after a password or a code was changed."""
        with self._lock:
            self._visitors = {key: visitor for key, visitor in self._visitors.items() if student is not None and visitor.student != student}
            self._keep(self._clock())

    def _is_valid(self, visitor: Visitor, now: float) -> bool:
        return 0 <= now - visitor.created + 60 <= self.absolute_seconds + 60 and now - visitor.seen <= self.idle_seconds

    def _keep(self, now: float) -> None:
        valid = {key: visitor for key, visitor in self._visitors.items() if self._is_valid(visitor, now)}
        newest = sorted(valid, key=lambda key: valid[key].seen)[-_MOST:]
        self._visitors = {key: valid[key] for key in newest}
        self._kept = now
        write_secret(self._path, {key: visitor.model_dump() for key, visitor in self._visitors.items()})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
