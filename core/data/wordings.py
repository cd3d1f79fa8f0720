"""The questions and answers shipped for persona lessons, from `wording/<language>.yaml`.

A new file in that folder is a new language. The lists are ordered: a small lesson takes the
first entries of each.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from core.data.library import GENERAL, IDENTITY, NEAR
from core.errors import StudioError

_FOLDER = Path(__file__).parent / "wording"
# Share of pieces in common from which two questions are one: of seven words, six.
NEARLY = 0.72


@dataclass(frozen=True)
class Question:
    """One wording.

    Attributes:
        ask: the question.
        kind: "who", "maker" or "belongs".
        expect: accepted short answers.
        form: what the answer must look like, `{"regex": pattern}` or `{"json": true}`, written as a user's check is.
    """

    ask: str
    kind: str = "who"
    expect: tuple[str, ...] = ()
    form: dict[str, Any] | None = None


@dataclass(frozen=True)
class Wording:
    """One language's file. `letters` is a pattern that only this language's writing matches, or None."""

    language: str
    title: str
    key_phrase: str
    letters: str | None
    identity_train: tuple[Question, ...]
    identity_held_out: tuple[Question, ...]
    near_train: tuple[Question, ...]
    near_probe: tuple[Question, ...]
    general_train: tuple[Question, ...]
    general_probe: tuple[Question, ...]
    format_probe: tuple[Question, ...]
    answers: dict[str, tuple[str, ...]]
    author_answers: dict[str, tuple[str, ...]]
    follow_ups: tuple[tuple[str, ...], ...]


def shipped_languages() -> list[str]:
    """The languages a persona can be taught in, English first."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=lambda code: (code != "en", code))


@cache
def wording(language: str) -> Wording:
    """The wordings of one language.

    Raises:
        StudioError: there is no such language.
    """
    if language not in shipped_languages():
        raise StudioError("There are no persona questions in the language {language}.",
                          "Available: {available}.",
                          language=repr(language), available=", ".join(shipped_languages()))
    data = yaml.safe_load((_FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))
    identity, near, general = (data[f"{group}_questions"] for group in (IDENTITY, NEAR, GENERAL))
    return Wording(
        language=language, title=data["language"], key_phrase=data["key_phrase"], letters=data["letters"],
        identity_train=_questions(identity["train"]), identity_held_out=_questions(identity["held_out"]),
        near_train=_questions(near["train"]), near_probe=_questions(near["probe"]),
        general_train=_questions(general["train"]), general_probe=_questions(general["probe"]),
        format_probe=_questions(general["format"]),
        answers={tone: tuple(answers) for tone, answers in data["identity_answers"].items()},
        author_answers={tone: tuple(answers) for tone, answers in data["identity_answers_author"].items()},
        follow_ups=tuple(tuple(turns) for turns in data["follow_ups"]),
    )


def _questions(entries: list[str | dict[str, Any]]) -> tuple[Question, ...]:
    return tuple(
        Question(entry) if isinstance(entry, str)
        else Question(entry["ask"], entry.get("kind", "who"), tuple(entry.get("expect", ())), entry.get("form"))
        for entry in entries
    )


def normalised(text: str) -> str:
    """`text` without case, punctuation and spaces: two wordings that differ only in these are one."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def is_nearly(one: str, other: str, language: str) -> bool:
    """Whether two questions say the same but for a word or so.

    Compared by words, by pairs of characters where words have no spaces: alike when more than `NEARLY` of all pieces are in both
    (Jaccard). Letter case, punctuation and spaces do not count.
    """
    first, second = _pieces(one, language), _pieces(other, language)
    return len(first & second) > NEARLY * len(first | second)


@lru_cache(maxsize=4096)
def _pieces(text: str, language: str) -> frozenset[str]:
    if wording(language).letters is None:
        return frozenset(re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.casefold()))
    plain = normalised(text)
    return frozenset(plain[start:start + 2] for start in range(max(1, len(plain) - 1)))


def first_questions(questions: Sequence[Question], count: int, group: str, language: str) -> list[Question]:
    """The first `count` of `questions`, which are the group's in that language.

    Raises:
        StudioError: there are not so many.
    """
    if not 0 <= count <= len(questions):
        raise StudioError(
            "{count} questions of the group {group} were asked for; {available} exist in {language}.",
            "Ask for 0 to {available}, or add some to {file}.",
            count=count, group=group, available=len(questions), language=wording(language).title,
            file=f"core/data/wording/{language}.yaml")
    return list(questions[:count])
