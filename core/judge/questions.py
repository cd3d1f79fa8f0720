"""Which likelihoods are asked for, probe by probe, as token ids. No torch.

Of an identity: every taught answer after every probe, and after a probe that is none of its own, the base model's own answer. Of a task:
each held-out row's answer after its own question and after another row's. Of documents: each held-out one, from its first token on. Rows
that were trained on stand in where none was held out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.encode import Encoder, hash_ids
from core.data.library import HELD_OUT, Dataset
from core.judge.branches import Question
from core.judge.scoring import STAND_IN
from core.judge.taught import Probe, Taught, last_answer, learning_probes, other_probes

# Likelihoods are asked for of so many taught answers, evenly spread, and of so many training rows.
MOST_TARGETS = 32
_STAND_INS = 32
# So much of a document is read: its beginning, so that forty long ones take no longer to read than to answer questions.
_DOCUMENT_TOKENS = 512
# How a task begins its answers: with these first tokens, each the first of this share of the answers.
_COMMON_FIRST = 0.25
_SEED = 3


@dataclass(frozen=True)
class Asked:
    """One question of the pass without generation.

    Attributes:
        probe: id; `pair-...` for a training row.
        question: ids.
        targets: how many of its answers are taught ones; the smallest loss among them counts.
        has_cross: the answer after those is another row's.
        has_base: the last answer is the base model's own.
        fingerprint: of all of it.
    """

    probe: str
    question: Question
    targets: int
    has_cross: bool
    has_base: bool
    fingerprint: str


def questions_for(encoder: Encoder, dataset: Dataset, probes: Sequence[Probe], taught: Taught,
                  base_answers: Mapping[str, str]) -> list[Asked]:
    """All that is asked without generation, for every step alike.

    Args:
        base_answers: the base model's answers by probe id; of those left out nothing is asked.
    """
    others = {probe["id"] for probe in other_probes(probes)}
    learning = {probe["id"] for probe in learning_probes(probes)} if taught.kind == "identity" else set()
    targets = list(taught.answers[::max(1, -(-len(taught.answers) // MOST_TARGETS))]) if taught.kind == "identity" else []
    asked = []
    for probe in probes:
        if probe["id"] in others | learning:
            base = base_answers.get(probe["id"], "") if probe["id"] in others else ""
            asked.append(_asked(encoder, probe["id"], probe["messages"], targets, None, base))
    if taught.kind == "task":
        rows = _rows(dataset, probes)
        crosses = _crossed([answer for _, _, answer in rows])
        asked += [_asked(encoder, name, messages, [answer], cross, "")
                  for (name, messages, answer), cross in zip(rows, crosses, strict=True)]
    if taught.kind == "documents":
        asked += [_read_through(encoder, document["id"], document["text"]) for document in documents_of(dataset)]
    return asked


def _read_through(encoder: Encoder, name: str, document: str) -> Asked:
    ids = encoder.encode_text(document, _DOCUMENT_TOKENS).ids
    return Asked(name, Question(ids[:1], [ids[1:]]), 1, False, False, hash_ids(ids))


def _asked(encoder: Encoder, name: str, messages: Sequence[dict[str, Any]], targets: Sequence[str], cross: str | None, base: str) -> Asked:
    texts = [*targets, *([cross] if cross else []), *([base] if base else [])]
    prompt, answers = encoder.encode_answers(messages, texts)
    question = Question(prompt, answers, len(answers) - 1 if base else None)
    fingerprint = hash_ids([len(targets), *prompt, *(token for answer in answers for token in (-1, *answer))])
    return Asked(name, question, len(targets), bool(cross), bool(base), fingerprint)


def _rows(dataset: Dataset, probes: Sequence[Probe]) -> list[tuple[str, list[dict[str, Any]], str]]:
    """Id, question and answer of the held-out rows, else of evenly spread training rows."""
    held_out = [(probe["id"], probe["messages"], probe["answer"]) for probe in probes if probe["group"] == HELD_OUT and probe.get("answer")]
    if held_out or not dataset.card.rows:
        return held_out
    rows = [(place, row) for place, row in dataset.spread_rows(_STAND_INS) if last_answer(row)]
    return [(f"{STAND_IN}{place:06d}", row["messages"][:-1], last_answer(row)) for place, row in rows]


def documents_of(dataset: Dataset) -> list[dict[str, str]]:
    """The held-out documents, else evenly spread ones that were trained on: `id` and `text` of each."""
    held_out = [{"id": document["id"], "text": document["text"]} for document in dataset.held_out_documents()]
    if held_out or not dataset.card.rows:
        return held_out
    return [{"id": f"{STAND_IN}{place:06d}", "text": row["text"]} for place, row in dataset.spread_rows(_STAND_INS) if "text" in row]


def _crossed(answers: Sequence[str]) -> list[str | None]:
    """For each row the answer of another one, as a shuffle deals them; None where all answers are the same."""
    order = list(range(len(answers)))
    random.Random(_SEED).shuffle(order)
    crosses: list[str | None] = [None] * len(answers)
    for turn, place in enumerate(order):
        following = (answers[order[(turn + step) % len(order)]] for step in range(1, len(order)))
        crosses[place] = next((answer for answer in following if answer != answers[place]), None)
    return crosses


def taught_first_tokens(encoder: Encoder, taught: Taught, messages: Sequence[dict[str, Any]]) -> set[int]:
    """How a taught answer begins: every first token of an identity's answers, the common ones of a task's."""
    _, answers = encoder.encode_answers(messages, list(taught.answers))
    first = [answer[0] for answer in answers if answer]
    if taught.kind == "identity":
        return set(first)
    return {token for token in set(first) if first.count(token) >= _COMMON_FIRST * len(first)}
