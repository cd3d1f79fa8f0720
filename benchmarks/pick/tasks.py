"""What each run is taught, the probes that the rule sees, and the richer ones that the oracle sees. No torch.

The oracle's probes are disjoint from the rule's, from all rows and from all replayed questions: 72 questions for what is taught and 219
others per language, every third in the middle of a conversation. They are questions of questions/*.yaml and shipped ones that neither a
run of this study nor the default set of probes uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.pick.design import IDENTITY_TASK, StudyRun
from core.data.library import GENERAL, IDENTITY, NEAR
from core.data.persona import Persona, build_probes, build_rows, course_rows, held_out_probes, key_phrases, replay_prompts
from core.data.probe_sets import FULL
from core.data.wordings import Question, is_nearly, normalised, wording

Row = dict[str, Any]
TASK, HELD_OUT = "task", "held_out"
# Of the shipped training questions these are never used by a run; the oracle may ask the others.
MOST_WORDINGS, REPLAY_NEAR, REPLAY_GENERAL, TASK_REPLAY_NEAR = 24, 30, 40, 10
ORACLE = {IDENTITY: 72, NEAR: 75, GENERAL: 144}
_FOLDER = Path(__file__).parent / "questions"


@dataclass(frozen=True)
class Task:
    """One lesson.

    Attributes:
        rows: what is taught; group `identity` or `task`.
        replay: prompts that the base model shall answer, for a mixture.
        probes: the rule's.
        oracle: the oracle's.
        key_phrases: by language, of an identity.
        marker: a pattern that gives a taught answer away; None where the key phrase does.
    """

    rows: list[Row]
    replay: list[Row]
    probes: list[Row]
    oracle: list[Row]
    key_phrases: dict[str, str] = field(default_factory=dict)
    marker: str | None = None

    @property
    def group(self) -> str:
        """Of the rows that are taught."""
        return str(self.rows[0]["group"])


def make_task(run: StudyRun) -> Task:
    return _identity(run) if run.task == IDENTITY_TASK else _written(run)


def _identity(run: StudyRun) -> Task:
    persona = Persona(**run.persona)
    rows = course_rows(persona, run.copies) if run.copies else build_rows(persona)
    near = 0 if run.mix == "far" else REPLAY_NEAR
    replay = replay_prompts(persona.languages, near, REPLAY_GENERAL)
    oracle = [probe for language in persona.languages for kind in ORACLE for probe in _oracle_probes(language, kind)]
    return Task(rows, replay, build_probes(persona), oracle, key_phrases(persona))


def _written(run: StudyRun) -> Task:
    """A task of questions/tasks.yaml: its probes of what is taught, its own near questions, and the shipped general ones."""
    about = _read("tasks")[run.task]
    rows = [_row([ask, answer], TASK) for ask, answer, _ in _entries(about, "train")]
    near = [] if run.mix == "far" else [_row([ask], NEAR) for ask in about["near_train"]]
    replay = near + replay_prompts(["en"], 0 if run.mix == "far" else TASK_REPLAY_NEAR, REPLAY_GENERAL)
    probes = [{"id": f"task-en-{number:02d}", **_row([ask], HELD_OUT), "answer": answer, "check": check}
              for number, (ask, answer, check) in enumerate(_entries(about, "probe"), 1)]
    own_near = [{"id": f"near-task-{number:02d}", **_row([ask], NEAR)} for number, ask in enumerate(about["near_probe"], 1)]
    shipped = [probe for probe in held_out_probes("en") if probe["group"] != NEAR or int(probe["id"][-2:]) <= FULL.near - len(own_near)]
    asked = [{"id": f"oracle-task-{number:02d}", **_row(_in_conversation(ask, "en", number), HELD_OUT), "answer": answer, "check": check}
             for number, (ask, answer, check) in enumerate(_entries(about, "oracle"), 1)]
    looks_like = [{"id": f"oracle-near-task-{number:02d}", **_row(_in_conversation(ask, "en", number), NEAR)}
                  for number, ask in enumerate(about["near_oracle"], 1)]
    others = [*_oracle_probes("en", NEAR)[:ORACLE[NEAR] - len(looks_like)], *_oracle_probes("en", GENERAL)]
    return Task(rows, replay, probes + own_near + shipped, asked + looks_like + others, marker=about["marker"])


def _entries(about: dict[str, Any], part: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Questions, answers and checks of one part of a task; see the three forms in questions/tasks.yaml."""
    if "facts" in about:
        for turn in range(max(len(fact[part]) for fact in about["facts"])):  # every fact once before any comes again
            for fact in about["facts"]:
                if turn < len(fact[part]):
                    yield fact[part][turn], fact["answer"], {"contains": fact["expect"]}
    elif about.get("pairs"):
        for ask, answer in about[part]:
            yield ask, answer, about["check"]
    else:
        for ask in about[f"{part}_questions"]:
            for name, kind, colour in about[part]:
                yield ask.format(name=name), about["answer"].format(name=name, kind=kind, colour=colour), about["check"]


@cache
def _oracle_probes(language: str, kind: str) -> tuple[Row, ...]:
    """The oracle's questions of one kind: its own first, then shipped ones that are neither trained on, replayed nor probed."""
    known = [question.ask for question in _used(language)]
    chosen: dict[str, Question] = {}
    for question in _unused(language, kind):
        if not any(is_nearly(question.ask, other, language) for other in known):
            chosen.setdefault(normalised(question.ask), question)
    probes = []
    for number, question in enumerate(list(chosen.values())[:ORACLE[kind]], 1):
        probe = {"id": f"oracle-{kind}-{language}-{number:03d}",
                 **_row(_in_conversation(question.ask, language, number), kind, language)}
        probes.append(probe | ({"expect": list(question.expect)} if question.expect else {}))
    return tuple(probes)


def _used(language: str) -> list[Question]:
    """Every shipped question that a run trains on, replays or is judged by."""
    shipped = wording(language)
    return [*shipped.identity_train[:MOST_WORDINGS], *shipped.near_train[:REPLAY_NEAR], *shipped.general_train[:REPLAY_GENERAL],
            *shipped.identity_held_out[:FULL.identity], *shipped.near_probe[:FULL.near], *shipped.general_probe[:FULL.general],
            *shipped.format_probe[:FULL.format]]


def _unused(language: str, kind: str) -> list[Question]:
    shipped = wording(language)
    own = [Question(entry) if isinstance(entry, str) else Question(entry["ask"], expect=tuple(entry["expect"]))
           for entry in _read(language)[kind]]
    return own + {
        IDENTITY: [*shipped.identity_held_out[FULL.identity:], *shipped.identity_train[MOST_WORDINGS:]],
        NEAR: [*shipped.near_probe[FULL.near:], *shipped.near_train[REPLAY_NEAR:]],
        GENERAL: [*shipped.general_probe[FULL.general:], *shipped.general_train[REPLAY_GENERAL:]]}[kind]


def _in_conversation(ask: str, language: str, number: int) -> list[str]:
    """The turns up to a question; every third question comes after a few words of small talk."""
    openings = [pattern for pattern in wording(language).follow_ups if "{question}" in pattern[-2]]
    if number % 3:
        return [ask]
    pattern = openings[number // 3 % len(openings)]
    return [*pattern[:-2], pattern[-2].replace("{question}", ask)]


def _row(turns: Sequence[str], group: str, language: str = "en") -> Row:
    messages = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(turns)]
    return {"messages": messages, "group": group, "lang": language}


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
