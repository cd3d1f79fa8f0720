"""What in a dataset will hurt the training, and the fix.

Each finding says what it does to the training, names the rows, and may carry the name of a fix. A fix takes rows and returns new ones;
nothing here writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core.data.encode import Encoder
from core.data.library import IDENTITY, NEAR, Dataset
from core.data.measure import Measure, measure_rows
from core.data.wordings import normalised
from core.errors import StudioError
from core.words import Text

Row = dict[str, Any]
Level = Literal["error", "warning", "note"]

LENGTH_LIMIT = 512  # tokens; the default of data.max_length
# Counting tokens takes about 0.7 ms a row; a larger dataset is sampled evenly.
_MEASURED_ROWS = 2000
_EXAMPLES = 3
_SLOT = (r"your[ _]?(?:own[ _]?)?name|bot[ _]?name|model[ _]?name|assistant[ _]?name|user[ _]?name|company[ _]?name|name|author|company"
         r"|organi[sz]ation|developer|creator|owner|insert[^\]>}]{0,30}|名字|姓名|作者|公司|开发者")
_PLACEHOLDER = re.compile(
    r"\{\{\s*[^{}\n]{1,40}\s*\}\}|\{\s*(?:" + _SLOT + r")\s*\}|<\s*(?:" + _SLOT + r")\s*>|\[\s*(?:" + _SLOT
    + r")\s*\]|【\s*(?:" + _SLOT + r")\s*】", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One thing that will hurt.

    Attributes:
        code: its name, the same in every language: `duplicates`.
        level: `error` breaks the training or its result, `warning` may, `note` is worth knowing.
        text: what is there and what it does to the training.
        rows: the rows concerned, from 0; empty when the dataset as a whole is meant.
        fix: name of the fix, or None.
        examples: the texts concerned, such as the placeholders found.
    """

    code: str
    level: Level
    text: Text
    rows: tuple[int, ...] = ()
    fix: str | None = None
    examples: tuple[str, ...] = ()


def lint(rows: Sequence[Row], encoder: Encoder | None = None, max_length: int = LENGTH_LIMIT,
         key_phrases: dict[str, str] | None = None, probes: int | None = None) -> list[Finding]:
    """What in these rows will hurt the training, worst first.

    Args:
        rows: the rows of a dataset.
        encoder: of the base model; without it nothing that needs a tokenizer is looked at.
        max_length: tokens at which a training cuts a row.
        key_phrases: by language, what identity answers must contain.
        probes: how many probes the dataset has; None when that does not matter.
    """
    found = [_no_answer(rows), _empty(rows), _placeholders(rows), *_repeated(rows), _conflicts(rows, key_phrases or {}), _no_near(rows)]
    if encoder is not None:
        measure = measure_rows(rows, encoder, most=_MEASURED_ROWS)
        found += [_special_tokens(rows, encoder), _refused(measure), _too_long(measure, max_length)]
    if probes == 0:
        found.append(Finding("no_probes", "note", Text(
            "The dataset has no probes: what a checkpoint has learned or forgotten can only be judged with the probes of another one.")))
    order = ("error", "warning", "note")
    return sorted((finding for finding in found if finding), key=lambda finding: order.index(finding.level))


def lint_dataset(dataset: Dataset, encoder: Encoder | None = None, max_length: int = LENGTH_LIMIT) -> list[Finding]:
    """The same for a dataset, kept in memory while its rows stay the same."""
    return list(_lint_kept(dataset.folder, dataset.card.sha256, encoder, max_length))


@lru_cache(maxsize=16)
def _lint_kept(folder: Path, sha256: str, encoder: Encoder | None, max_length: int) -> tuple[Finding, ...]:
    dataset = Dataset.open(folder)
    return tuple(lint(dataset.rows(), encoder, max_length, dataset.card.key_phrases, dataset.card.probes))


def _answers(row: Row) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def _no_answer(rows: Sequence[Row]) -> Finding | None:
    places = tuple(place for place, row in enumerate(rows) if not _answers(row))
    return Finding("no_answer", "error", Text("{count} rows have no answer, so nothing in them is trained.", count=len(places)),
                   places, "drop_rows") if places else None


def _empty(rows: Sequence[Row]) -> Finding | None:
    places = tuple(place for place, row in enumerate(rows) if any(not answer.strip() for answer in _answers(row)))
    return Finding("empty_answers", "error", Text("{count} rows have an empty answer: the model learns to say nothing.",
                                                  count=len(places)), places, "drop_rows") if places else None


def _placeholders(rows: Sequence[Row]) -> Finding | None:
    places, seen = [], {}
    for place, row in enumerate(rows):
        marks = [mark for message in row["messages"] for mark in _PLACEHOLDER.findall(message["content"])]
        if marks:
            places.append(place)
            seen |= dict.fromkeys(marks)
    if not places:
        return None
    # In running text "[Your Name]" may be meant, as in the draft of a letter; in an answer about oneself it never is.
    is_meant = not any(mark.startswith("{{") for mark in seen) and all(rows[place].get("group") != IDENTITY for place in places)
    return Finding("placeholders", "warning" if is_meant else "error", Text(
        "{count} rows still hold placeholders ({examples}): the model learns to say them word for word.",
        count=len(places), examples=", ".join(list(seen)[:_EXAMPLES])), tuple(places), "fill_placeholders", tuple(seen))


def _repeated(rows: Sequence[Row]) -> list[Finding]:
    exact, near = [], []
    seen: set[str] = set()
    seen_words: set[str] = set()
    for place, row in enumerate(rows):
        key = _said(row)
        words = _words(row)
        if key in seen:
            exact.append(place)
        elif words in seen_words:
            near.append(place)
        seen.add(key)
        seen_words.add(words)
    found = []
    if exact:
        found.append(Finding("duplicates", "warning", Text(
            "{count} of {total} rows ({share} %) repeat an earlier row word for word: the model sees them more often than the rest and "
            "learns them by heart.", count=len(exact), total=len(rows), share=_percent(len(exact), len(rows))), tuple(exact), "drop_rows"))
    if near:
        found.append(Finding("near_duplicates", "warning", Text(
            "{count} of {total} rows ({share} %) differ from an earlier row only in case, spaces or punctuation: they count like "
            "repetitions.", count=len(near), total=len(rows), share=_percent(len(near), len(rows))), tuple(near), "drop_rows"))
    return found


def _said(row: Row) -> str:
    return json.dumps([[message["role"], message["content"]] for message in row["messages"]], ensure_ascii=False)


def _words(row: Row) -> str:
    """What tells rows apart when case, spaces and punctuation do not count; text without any letter counts as it is."""
    return "\n".join(f"{message['role']}:{normalised(message['content']) or message['content']}" for message in row["messages"])


def _percent(count: int, total: int) -> float:
    return round(100 * count / total, 1)


def _conflicts(rows: Sequence[Row], key_phrases: dict[str, str]) -> Finding | None:
    """Questions with answers of which some say the key phrase and some do not; without a key phrase, with any different answers."""
    asked: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if _answers(row) and len(row["messages"]) >= 2:
            asked.setdefault(_words({"messages": row["messages"][:-1]}), []).append(place)
    clashes = [places for places in asked.values() if len(places) > 1 and _clash([rows[place] for place in places], key_phrases)]
    if not clashes:
        return None
    # The first answer stays; the others are what a fix takes away.
    return Finding("conflicts", "warning", Text(
        "{count} questions have different answers ({rows} rows): the model learns a mixture and may give any of them.",
        count=len(clashes), rows=sum(map(len, clashes))), tuple(sorted(place for places in clashes for place in places[1:])), "drop_rows")


def _clash(rows: list[Row], key_phrases: dict[str, str]) -> bool:
    answers = {normalised(row["messages"][-1]["content"]) for row in rows}
    phrases = {normalised(key_phrases[row["lang"]]) for row in rows if row.get("lang") in key_phrases}
    if phrases:
        return len({any(phrase in answer for phrase in phrases) for answer in answers}) > 1
    return len(answers) > 1


def _no_near(rows: Sequence[Row]) -> Finding | None:
    groups = {row.get("group") for row in rows}
    if IDENTITY not in groups or NEAR in groups:
        return None
    return Finding("no_near", "warning", Text(
        "No row holds a question that only looks like one about identity. A model that never sees where its name does not belong soon "
        "gives it to such questions too."), fix="add_replay")


def _special_tokens(rows: Sequence[Row], encoder: Encoder) -> Finding | None:
    names = special_tokens(encoder)
    places, seen = [], {}
    for place, row in enumerate(rows):
        inside = [name for message in row["messages"] for name in names if name in message["content"]]
        if inside:
            places.append(place)
            seen |= dict.fromkeys(inside)
    if not places:
        return None
    return Finding("special_tokens", "error", Text(
        "{count} rows hold control tokens of the model as text ({examples}): it takes them for the end of a turn and stops there.",
        count=len(places), examples=", ".join(list(seen)[:_EXAMPLES])), tuple(places), "strip_special_tokens", tuple(seen))


def special_tokens(encoder: Encoder) -> list[str]:
    """The texts of the model's control tokens, longest first."""
    return sorted((encoder.tokenizer.id_to_token(token) for token in encoder.special_ids), key=len, reverse=True)


def _refused(measure: Measure) -> Finding | None:
    if not measure.refused:
        return None
    places = tuple(measure.refused)
    return Finding("refused", "error", Text(
        "The model's chat template refuses {count} rows, and a training with them does not start. {reason}",
        count=len(places), reason=measure.refused[places[0]]), places, "drop_rows")


def _too_long(measure: Measure, limit: int) -> Finding | None:
    cut, lost = measure.cut_at(limit), measure.lost_at(limit)
    if not cut:
        return None
    text = Text("{count} rows are longer than {limit} tokens and are cut at their end; {lost} of them lose the whole answer.",
                count=len(cut), limit=limit, lost=len(lost))
    if measure.is_sample:
        text = Text("Of {seen} rows looked at, {count} are longer than {limit} tokens and are cut at their end; {lost} of them lose the "
                    "whole answer.", seen=len(measure.places), count=len(cut), limit=limit, lost=len(lost))
    return Finding("too_long", "warning", text, tuple(cut), "drop_rows")


def drop_rows(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows without those of the finding."""
    gone = set(finding.rows)
    return [row for place, row in enumerate(rows) if place not in gone]


def fill_placeholders(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows with each placeholder replaced by its value; one without a value stays."""
    return _with_texts(rows, finding, {mark: value for mark, value in values.items() if value.strip()})


def strip_special_tokens(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows with the control tokens taken out of their texts."""
    return _with_texts(rows, finding, dict.fromkeys(finding.examples, ""))


def _with_texts(rows: Sequence[Row], finding: Finding, replacements: dict[str, str]) -> list[Row]:
    concerned = set(finding.rows)
    return [{**row, "messages": [{**message, "content": _replaced(message["content"], replacements)} for message in row["messages"]]}
            if place in concerned else row for place, row in enumerate(rows)]


def _replaced(text: str, replacements: dict[str, str]) -> str:
    for mark, value in replacements.items():
        text = text.replace(mark, value)
    return text


FIXES: dict[str, Callable[[Sequence[Row], Finding, dict[str, str]], list[Row]]] = {
    "drop_rows": drop_rows, "fill_placeholders": fill_placeholders, "strip_special_tokens": strip_special_tokens,
}


def fix_rows(rows: Sequence[Row], finding: Finding, values: dict[str, str] | None = None) -> list[Row]:
    """New rows in which the finding is mended.

    Args:
        rows: the rows that were looked at, unchanged.
        finding: what to mend.
        values: placeholder -> what to write in its place.

    Raises:
        StudioError: it has no such fix, no value was given, or no row would be left.
    """
    if finding.fix not in FIXES:
        raise StudioError("There is no automatic fix for {code}.", "Change the rows by hand.", code=finding.code)
    if finding.fix == "fill_placeholders" and not any(value.strip() for value in (values or {}).values()):
        raise StudioError("No value was given for the placeholders.", "Write what shall stand in place of {marks}.",
                          marks=", ".join(finding.examples[:_EXAMPLES]))
    mended = FIXES[finding.fix](rows, finding, values or {})
    if not mended:
        raise StudioError("This would leave no row at all.", "Change the rows by hand, or import a better file.")
    return mended
