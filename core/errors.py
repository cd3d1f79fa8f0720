"""The one exception whose text a user is meant to read."""

from __future__ import annotations

from typing import Any

from core.words import Text


class StudioError(Exception):
    """Something the user can understand and act on: what is wrong, and the way out.

    Both parts are English templates filled with `values`:
    `StudioError("No dataset is called {name}.", "`sweetspot data list` shows them.", name=name)`.

    Attributes:
        problem: one sentence naming the place (file, row, field).
        hint: one sentence with the way out.
        exit_code: 2 for input that can be corrected, 1 for a job that failed.
    """

    exit_code = 2

    def __init__(self, problem: str, hint: str, **values: Any) -> None:
        self.problem = Text(problem, **values)
        self.hint = Text(hint, **values)
        super().__init__(str(self.problem))

    def to_json(self) -> dict[str, Any]:
        return {"problem": self.problem.to_json(), "hint": self.hint.to_json()}


class JobFailed(StudioError):
    """A job ended without doing what was asked; carries the job's own words."""

    exit_code = 1

    @classmethod
    def from_texts(cls, problem: Text, hint: Text) -> JobFailed:
        failure = cls(problem.template, hint.template, **{**problem.values, **hint.values})
        failure.problem, failure.hint = problem, hint
        return failure
