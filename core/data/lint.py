"""What in a dataset will hurt the training.

Each finding says what it does to the training, names the rows, and may carry the name of a fix (`core.data.fixes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.data.contents import different_systems, personal_data, placeholders, special_tokens, tools_unseen, wrong_language
from core.data.encode import Encoder
from core.data.findings import Finding, Row, is_answered, percent
from core.data.library import IDENTITY, NEAR, Dataset
from core.data.measure import Measure, measure_rows
from core.data.repetition import conflicts, repeated
from core.words import Text

LENGTH_LIMIT = 512  # tokens; the default of data.max_length
# Counting tokens takes about 0.7 ms a row; a larger dataset is sampled evenly.
_MEASURED_ROWS = 2000
_FEWEST_TO_HOLD_OUT = 10
# The page looks at so many rows of a dataset; the command looks at all.
_PAGE_ROWS = 5_000
# From this share on, identity rows leave no room for anything else; the lesson that keeps the model alive has half of them.
_IDENTITY_SHARE = 0.75


@dataclass(frozen=True)
class Plan:
    """The training that is planned: how many updates, and rows per update. The default is the lesson's."""

    updates: int = 24
    effective_batch: int = 4


def lint(rows: Sequence[Row], encoder: Encoder | None = None, max_length: int = LENGTH_LIMIT,
         key_phrases: dict[str, str] | None = None, probes: int | None = None, plan: Plan | None = None) -> list[Finding]:
    """What in these rows will hurt the training, worst first.

    Args:
        rows: the rows of a dataset.
        encoder: of the base model; without it nothing that needs a tokenizer is looked at.
        max_length: tokens at which a training cuts a row.
        key_phrases: by language, what identity answers must contain.
        probes: how many probes the dataset has; None when that does not matter.
        plan: the training that is planned.
    """
    found = [_no_answer(rows), _empty(rows), placeholders(rows), *repeated(rows), conflicts(rows, key_phrases or {}), _no_near(rows),
             _identity_share(rows, plan or Plan()), wrong_language(rows), different_systems(rows), personal_data(rows), _pairs(rows)]
    if encoder is not None:
        measure = measure_rows(rows, encoder, most=_MEASURED_ROWS)
        found += [special_tokens(rows, encoder), tools_unseen(rows, encoder), _refused(measure), _too_long(measure, max_length)]
    if probes == 0:
        is_identity = any(row.get("group") == IDENTITY for row in rows)  # those are asked in other wordings, not in rows held out
        found.append(Finding("no_probes", "note", Text(
            "The dataset has no probes: what a checkpoint has learned or forgotten can only be judged with the probes of another one."),
            fix=None if is_identity or len(rows) < _FEWEST_TO_HOLD_OUT else "hold_out"))
    order = ("error", "warning", "note")
    return sorted((finding for finding in found if finding), key=lambda finding: order.index(finding.level))


def lint_dataset(dataset: Dataset, encoder: Encoder | None = None, max_length: int = LENGTH_LIMIT) -> list[Finding]:
    """The same for a dataset, its first 5,000 rows, kept in memory while its rows stay the same."""
    return list(_lint_kept(dataset.folder, dataset.card.sha256, encoder, max_length))


@lru_cache(maxsize=16)
def _lint_kept(folder: Path, sha256: str, encoder: Encoder | None, max_length: int) -> tuple[Finding, ...]:
    dataset = Dataset.open(folder)
    found = lint(dataset.first_rows(_PAGE_ROWS), encoder, max_length, dataset.card.key_phrases, dataset.card.probes)
    if dataset.card.rows > _PAGE_ROWS:
        found.append(Finding("first_rows", "note", Text(
            "The first {seen} of {total} rows were looked at; `sweetspot data lint {name}` looks at all of them.",
            seen=_PAGE_ROWS, total=dataset.card.rows, name=dataset.card.name)))
    return tuple(found)


def _no_answer(rows: Sequence[Row]) -> Finding | None:
    places = tuple(place for place, row in enumerate(rows)
                   if "messages" in row and not any(message["role"] == "assistant" for message in row["messages"]))
    return Finding("no_answer", "error", Text("{count} rows have no answer, so nothing in them is trained.", count=len(places)),
                   places, "drop_rows") if places else None


def _empty(rows: Sequence[Row]) -> Finding | None:
    places = tuple(place for place, row in enumerate(rows) if not row.get("text", "x").strip() or any(
        message["role"] == "assistant" and not is_answered(message) for message in row.get("messages", [])))
    return Finding("empty_answers", "error", Text("{count} rows have an empty answer: the model learns to say nothing.",
                                                  count=len(places)), places, "drop_rows") if places else None


def _no_near(rows: Sequence[Row]) -> Finding | None:
    groups = {row.get("group") for row in rows}
    if IDENTITY not in groups or NEAR in groups:
        return None
    return Finding("no_near", "warning", Text(
        "No row holds a question that only looks like one about identity. A model that never sees where its name does not belong soon "
        "gives it to such questions too."), fix="add_replay")


def _identity_share(rows: Sequence[Row], plan: Plan) -> Finding | None:
    """Identity rows that take nearly all of the updates. What counts is how often the model sees the same few answers."""
    identity = [row for row in rows if row.get("group") == IDENTITY and "messages" in row]
    share = len(identity) / max(1, len(rows))
    if share < _IDENTITY_SHARE:
        return None
    answers = len({row["messages"][-1]["content"] for row in identity})
    times = plan.updates * plan.effective_batch * share / answers
    return Finding("identity_share", "warning", Text(
        "{share} % of the rows are about identity. In {updates} updates of {batch} rows the model sees each of their {answers} answers "
        "about {times} times and little else, and begins to give them to every question.", share=percent(len(identity), len(rows)),
        updates=plan.updates, batch=plan.effective_batch, answers=answers, times=max(1, round(times))), fix="add_replay")


def _pairs(rows: Sequence[Row]) -> Finding | None:
    places = tuple(place for place, row in enumerate(rows) if "rejected" in row)
    return Finding("preference_pairs", "note", Text(
        "{count} rows are pairs of a preferred and a rejected answer: ordinary training learns the preferred one and never sees the other.",
        count=len(places)), places) if places else None


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
    gone = sum(measure.tokens) - sum(measure.lengths_at(limit))
    share = percent(gone, sum(measure.tokens))
    if measure.is_sample:
        text = Text("Of {seen} rows looked at, {count} are longer than {limit} tokens and are cut at their end: {gone} tokens, {share} % "
                    "of all, are never trained; {lost} of them lose the whole answer.",
                    seen=len(measure.places), count=len(cut), limit=limit, lost=len(lost), gone=gone, share=share)
    else:
        text = Text("{count} rows are longer than {limit} tokens and are cut at their end: {gone} tokens, {share} % of all, are never "
                    "trained; {lost} of them lose the whole answer.", count=len(cut), limit=limit, lost=len(lost), gone=gone, share=share)
    return Finding("too_long", "warning", text, tuple(cut), "drop_rows")
