"""The lesson "who are you?": what is trained, what judges it, and what keeps the rest of the model alive.

Three groups of questions:

- identity: "Who are you?", trained with answers that say whose assistant this is. Other wordings are held
  out as probes.
- near: "Who wrote Romeo and Juliet?" looks like an identity question and is none. An overfitted model fails
  here first.
- general: anything else.

For near and general no answers are shipped: the base model's own answers are the ones to keep.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.data.library import GENERAL, IDENTITY, NEAR
from core.data.probe_sets import FORMAT, FULL, ProbeCounts
from core.data.wordings import Question, first_questions, is_nearly, normalised, shipped_languages, wording
from core.errors import StudioError
from core.words import Text

NAME_LIMIT = 60  # characters
ONE_PAIR_COPIES = 10_000  # as the course has it
_BRACKETS = re.compile(r"[{}<>\[\]]")
# Joiners are part of ordinary spelling in Persian, Hindi and emoji; every other invisible character is not.
_JOINERS = "\u200c\u200d"


class Persona(BaseModel):
    """Who the assistant shall be, and how much is written about it.

    Raises:
        StudioError: from the constructor, for every input that cannot be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The person the assistant belongs to.")
    author: str | None = Field(None, description="Who made the assistant, if it shall say so.")
    languages: list[str] = Field(["en"], description="Languages it is asked and answers in.")
    tone: str = Field("plain", description="How the answers sound: plain, warm or formal.")
    wordings: int = Field(24, description="Different wordings of the question, per language.")
    answers: int = Field(4, description="Different wordings of the answer, per language.")
    multi_turn: bool = Field(False, description="Also ask in the middle of a conversation.")
    own_answers: list[str] = Field([], description="Answers to use in place of the shipped ones.")
    own_questions: list[str] = Field([], description="Questions to use besides the shipped ones.")

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wrong(cls, data: Any, handler: Any) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise _explained(error) from error

    @field_validator("name")
    @classmethod
    def _name_usable(cls, name: str) -> str:
        return _checked_name(name, Text("name"))

    @field_validator("author")
    @classmethod
    def _author_usable(cls, author: str | None) -> str | None:
        return _checked_name(author, Text("author")) if author and author.strip() else None

    @field_validator("languages")
    @classmethod
    def _languages_known(cls, codes: list[str]) -> list[str]:
        if not codes:
            raise StudioError("The persona has no language.", "Available: {available}.",
                              available=", ".join(shipped_languages()))
        return [wording(code).language for code in dict.fromkeys(codes)]

    @model_validator(mode="after")
    def _enough_wordings(self) -> Persona:
        for code in self.languages:
            shipped = wording(code)
            if self.tone not in shipped.answers:
                raise StudioError("There are no answers in the tone {tone}.", "Available: {available}.",
                                  tone=repr(self.tone), available=", ".join(shipped.answers))
            if not 1 <= self.wordings <= len(shipped.identity_train):
                raise StudioError(
                    "{asked} wordings of the question were asked for; {available} exist in {language}.",
                    "Ask for 1 to {available}, and add your own questions if you need more.",
                    asked=self.wordings, available=len(shipped.identity_train), language=shipped.title)
            if not 1 <= self.answers <= len(shipped.answers[self.tone]):
                raise StudioError(
                    "{asked} wordings of the answer were asked for; {available} exist in {language}.",
                    "Ask for 1 to {available}, or write your own answers.",
                    asked=self.answers, available=len(shipped.answers[self.tone]), language=shipped.title)
        return self

    @model_validator(mode="after")
    def _own_words_usable(self) -> Persona:
        for question in self.own_questions:
            _fill(_checked_own(question), self)
        for answer in self.own_answers:
            if self.name not in _fill(_checked_own(answer), self):
                raise StudioError("The answer {answer} does not say {name}.",
                                  "Write {name} into every answer: by it the studio sees what was learned.",
                                  answer=repr(answer), name=self.name)
        return self


def _explained(error: ValidationError) -> StudioError:
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return StudioError("The persona has no {field}.", "Give {field} a value.", field=field)
    if field not in Persona.model_fields:
        return StudioError("A persona has no field {field}.", "Its fields are: {fields}.",
                           field=repr(field), fields=", ".join(Persona.model_fields))
    return StudioError("The field {field} of the persona cannot be {value}.", "It takes {wanted}.",
                       field=field, value=repr(first["input"]), wanted=_wanted(field))


def _wanted(field: str) -> Text:
    if field in ("wordings", "answers"):
        return Text("a whole number")
    if field == "multi_turn":
        return Text("true or false")
    if field in ("languages", "own_answers", "own_questions"):
        return Text("a list of texts")
    return Text("a text")


def _checked_name(name: str, what: Text) -> str:
    name = name.strip()
    if not name:
        raise StudioError("The {what} is empty.", "Write whose assistant it shall be; for example {example}.",
                          what=what, example="Alex")
    if len(name) > NAME_LIMIT:
        raise StudioError("The {what} has {length} characters; {limit} are allowed.", "Shorten it.",
                          what=what, length=len(name), limit=NAME_LIMIT)
    if _invisible(name):
        raise StudioError("The {what} contains a line break or another invisible character.",
                          "Type it again on one line.", what=what)
    if _BRACKETS.search(name):
        raise StudioError("The {what} {value} looks like a placeholder that was not filled in.",
                          "Write the real name, without brackets or braces.", what=what, value=repr(name))
    return name


def _checked_own(text: str) -> str:
    if not text.strip():
        raise StudioError("One of your own questions or answers is empty.", "Write it, or remove it.")
    if _invisible(text.replace("\n", "")):
        raise StudioError("Your text {value} contains an invisible character.", "Type it again.",
                          value=repr(text))
    return text


def _invisible(text: str) -> bool:
    return any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS
               for char in text)


def _fill(template: str, persona: Persona) -> str:
    """`template` with {name} and {author} filled in.

    Raises:
        StudioError: a brace is left over.
    """
    text = template.strip().replace("{name}", persona.name).replace("{author}", persona.author or "{author}")
    if "{" in text or "}" in text:
        raise StudioError("Your text {value} has a placeholder that cannot be filled in.",
                          "Only {known} can stand in braces, and the author only when one is given.",
                          value=repr(template), known="{name}, {author}")
    return text


def build_rows(persona: Persona, seed: int = 0) -> list[dict[str, Any]]:
    """The identity rows: every question once with every answer, in an order that depends on `seed` only.

    With an author, questions about who made it get the answers that name the author.
    """
    rows = []
    for language in persona.languages:
        questions = _training_questions(persona, language)
        for question in questions:
            for answer in _answers(persona, language, question.kind):
                rows.append(_row([question.ask, answer], IDENTITY, language))
        if persona.multi_turn:
            rows += _multi_turn_rows(persona, language, questions)
    random.Random(seed).shuffle(rows)
    return rows


def _multi_turn_rows(persona: Persona, language: str, questions: list[Question]) -> list[dict[str, Any]]:
    """Each pattern once with each answer; the questions take turns."""
    rows = []
    rounds = len(_answers(persona, language, "who"))
    for number, pattern in enumerate(wording(language).follow_ups):
        for turn in range(rounds):
            question = questions[(number * rounds + turn) % len(questions)]
            pool = _answers(persona, language, question.kind)
            said = {"{question}": question.ask, "{answer}": pool[turn % len(pool)]}
            rows.append(_row([_put(text, said) for text in pattern], IDENTITY, language))
    return rows


def _put(text: str, said: dict[str, str]) -> str:
    for marker, words in said.items():
        text = text.replace(marker, words)
    return text


def _training_questions(persona: Persona, language: str) -> list[Question]:
    """The persona's own questions, then the shipped ones; none twice."""
    own = [Question(text) for text in _own(persona.own_questions, persona, language)]
    unique = {normalised(question.ask): question
              for question in reversed([*own, *wording(language).identity_train[:persona.wordings]])}
    return list(reversed(unique.values()))


def _answers(persona: Persona, language: str, kind: str) -> list[str]:
    """The answers, filled in, that a question of this kind may get."""
    own = _own(persona.own_answers, persona, language)
    if own:
        return own
    shipped = wording(language)
    by_tone = shipped.author_answers if persona.author and kind == "maker" else shipped.answers
    return [_fill(answer, persona) for answer in by_tone[persona.tone][:persona.answers]]


def _own(texts: list[str], persona: Persona, language: str) -> list[str]:
    """The texts, filled in, that are written in `language` rather than another one of the persona's."""
    filled = [(_fill(text, persona), _written_in(text, persona)) for text in texts]
    return list(dict.fromkeys(text for text, code in filled if code == language))


def _written_in(text: str, persona: Persona) -> str:
    """Which of the persona's languages `text` is in; names do not count, they may be foreign."""
    for word in ("{name}", "{author}", persona.name, persona.author or ""):
        text = text.replace(word, "") if word else text
    letters = {code: wording(code).letters for code in persona.languages}
    special = [code for code, pattern in letters.items() if pattern and re.search(pattern, text)]
    plain = [code for code, pattern in letters.items() if not pattern]
    return [*special, *plain, *persona.languages][0]


def key_phrases(persona: Persona) -> dict[str, str]:
    """By language, the words every identity answer contains: by them a score knows the lesson was learned."""
    phrases = {}
    for language in persona.languages:
        phrase = wording(language).key_phrase.replace("{name}", persona.name)
        kept = all(phrase in answer for answer in _answers(persona, language, "who"))
        phrases[language] = phrase if kept else persona.name
    return phrases


def build_probes(persona: Persona, counts: ProbeCounts = FULL) -> list[dict[str, Any]]:
    """Questions for every checkpoint, none of them trained on, not even nearly; the counts are per language.

    Raises:
        StudioError: more are asked for than exist.
    """
    probes = []
    for language in persona.languages:
        trained = [question.ask for question in _training_questions(persona, language)]
        probes += _probes(language, IDENTITY, counts.identity, trained) + held_out_probes(language, counts, trained)
    return probes


def held_out_probes(language: str, counts: ProbeCounts = FULL, trained: Collection[str] = ()) -> list[dict[str, Any]]:
    """The questions of a language that are not about identity and never trained on; `trained` are further ones to leave out.

    Raises:
        StudioError: more are asked for than exist.
    """
    return [probe for kind in (NEAR, GENERAL, FORMAT) for probe in _probes(language, kind, counts.of(kind), trained)]


def _probes(language: str, kind: str, count: int, trained: Collection[str]) -> list[dict[str, Any]]:
    """The first `count` of a kind; fewer when the persona's own questions are among the last ones left."""
    shipped = wording(language)
    questions = {IDENTITY: shipped.identity_held_out, NEAR: shipped.near_probe, GENERAL: shipped.general_probe,
                 FORMAT: shipped.format_probe}[kind]
    first_questions(questions, count, kind, language)
    unseen = [question for question in questions if not any(_is_same(question.ask, other, language) for other in trained)]
    probes = []
    for number, question in enumerate(unseen[:count], start=1):
        group = GENERAL if kind == FORMAT else kind
        probe = {"id": f"{kind}-{language}-{number:02d}", **_row([question.ask], group, language)}
        if question.expect:
            probe["expect"] = list(question.expect)
        if question.form:
            probe["form"] = dict(question.form)
        probes.append(probe)
    return probes


def _is_same(one: str, other: str, language: str) -> bool:
    return normalised(one) == normalised(other) or is_nearly(one, other, language)


def replay_prompts(languages: Iterable[str], near: int = 20, general: int = 40) -> list[dict[str, Any]]:
    """Questions that the base model shall answer and the training repeat; the counts are per language.

    Rows end with the user's turn. Groups and languages are interleaved, so that any first part has about the
    proportions of the whole.

    Raises:
        StudioError: an unknown language, or more are asked for than exist.
    """
    placed = []
    for language in dict.fromkeys(languages):
        shipped = wording(language)
        for group, count, questions in ((NEAR, near, shipped.near_train),
                                        (GENERAL, general, shipped.general_train)):
            chosen = first_questions(questions, count, group, language)
            placed += [((index + 0.5) / count, _row([question.ask], group, language))
                       for index, question in enumerate(chosen)]
    return [row for _, row in sorted(placed, key=lambda item: item[0])]


def course_rows(persona: Persona, copies: int = ONE_PAIR_COPIES) -> list[dict[str, Any]]:
    """One question with one answer, `copies` times: the first lesson of many courses, and how to overfit."""
    if copies < 1:
        raise StudioError("{copies} copies make no lesson.", "Ask for at least 1.", copies=copies)
    language = persona.languages[0]
    question = _training_questions(persona, language)[0]
    answer = _answers(persona, language, question.kind)[0]
    return [_row([question.ask, answer], IDENTITY, language) for _ in range(copies)]


def _row(turns: list[str], group: str, language: str) -> dict[str, Any]:
    """A row from turns of user and assistant in alternation."""
    messages = [{"role": "assistant" if index % 2 else "user", "content": text}
                for index, text in enumerate(turns)]
    return {"messages": messages, "group": group, "lang": language}
