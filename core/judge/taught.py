"""What a dataset teaches, as far as a judge must know it: the answers, the phrase that gives them away, their pieces. No torch.

Three kinds of dataset are told apart. An *identity* dataset has identity probes: one of few sentences is right wherever the model is asked
who it is, and wrong everywhere else. *Documents*, where most rows are plain text, teach a language, which is seen in documents that were
held out. Any other dataset is a *task*: each held-out row has its own right answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.data.library import GENERAL, HELD_OUT, IDENTITY, NEAR, Dataset
from core.judge.metrics import knows_fact, rouge_l, taught_grams, words

Probe = dict[str, Any]
Kind = Literal["identity", "task", "documents"]
OWN = "own"

# Of a task's answers so many, evenly spread, are looked for in answers to other questions.
_MOST_TARGETS = 200
# Of a task's four-word sequences those count as taught that recur in this share of its answers: its manner, not ordinary speech.
_RECURRING_SHARE = 0.05
# A short reference must be said; of a longer one, which can be put in many ways, the likelihood may tell.
SHORT_WORDS = 12
# So much less surprising than to the base model, as a share of its loss, a longer reference must have become ...
_LEARNED_SHARE = 0.1
# ... and a document, which is no answer to anything: nobody learns to foresee a tenth of it.
_DOCUMENT_SHARE = 0.01
SAID_ROUGE = 0.6


@dataclass(frozen=True)
class Taught:
    """What was taught.

    Attributes:
        answers: T, the distinct taught answers (of a task a sample of them).
        phrases: language -> what an identity answer must hold.
        grams: four-word sequences that count as a piece of what was taught.
    """

    kind: Kind
    answers: tuple[str, ...]
    phrases: dict[str, str]
    grams: frozenset[tuple[str, ...]]

    def phrase(self, language: str) -> str:
        """The key phrase of a language; an added question may be in one that the dataset does not teach."""
        return self.phrases.get(language) or next(iter(self.phrases.values()), "")


def taught_by(dataset: Dataset, probes: Sequence[Probe]) -> Taught:
    """What `dataset` teaches, seen with its probes."""
    if any(probe["group"] == IDENTITY for probe in probes):
        answers = training_answers(dataset)
        return Taught("identity", tuple(answers), dataset.card.key_phrases, taught_grams(answers))
    rows = [row for _, row in dataset.spread_rows(20 * _MOST_TARGETS)] if dataset.card.rows else []
    if sum("text" in row for row in rows) > len(rows) / 2 and not learning_probes(probes):
        return Taught("documents", (), {}, frozenset())
    said = [answer for row in rows if (answer := last_answer(row)) and row.get("group") not in (NEAR, GENERAL)]
    counts = Counter(gram for answer in said for gram in taught_grams([answer]))
    least = max(2, _RECURRING_SHARE * len(said))
    distinct = list(dict.fromkeys(said))
    return Taught("task", tuple(distinct[::max(1, -(-len(distinct) // _MOST_TARGETS))]), {},
                  frozenset(gram for gram, count in counts.items() if count >= least))


def training_answers(dataset: Dataset) -> list[str]:
    """T of an identity dataset: the distinct last answers of the identity rows; none in a dataset without such rows."""
    rows = [row for row in dataset.rows() if row.get("group") == IDENTITY]
    return list(dict.fromkeys(row["messages"][-1]["content"] for row in rows if row["messages"][-1]["role"] == "assistant"))


def last_answer(row: dict[str, Any]) -> str:
    """The answer that a row ends with; empty when it is a plain document or ends otherwise."""
    messages = row.get("messages") or [{"role": "", "content": ""}]
    return str(messages[-1].get("content") or "").strip() if messages[-1]["role"] == "assistant" else ""


def learning_probes(probes: Sequence[Probe]) -> list[Probe]:
    """P: the probes by which it shows whether the lesson was learned.

    Identity probes; of a task its own checks, or else its held-out rows.
    """
    identity = [probe for probe in probes if probe["group"] == IDENTITY]
    checked = [probe for probe in probes if probe.get("check")]
    return identity or checked or [probe for probe in probes if probe["group"] == HELD_OUT]


def other_probes(probes: Sequence[Probe]) -> list[Probe]:
    """G: everything else that the dataset asks; never the user's own questions, whose right answer nobody but the user knows."""
    return [probe for probe in probes if probe["group"] not in (IDENTITY, HELD_OUT, OWN) and not probe.get("check")]


def own_checks(probes: Sequence[Probe]) -> list[Probe]:
    """The user's own probes with a check: they count, in a metric of their own."""
    return [probe for probe in probes if probe.get("check")]


def says_reference(answer: str, reference: str, loss: float | None = None, base_loss: float | None = None) -> bool:
    """Whether a held-out row counts as learned.

    Its reference was said but for a few words (ROUGE-L F1 >= 0.6), or stands whole in the answer; a reference of more than twelve words
    may instead have become likelier: its loss lies at least a tenth below the base model's.
    """
    if rouge_l(answer, reference) >= SAID_ROUGE or knows_fact(answer, [reference]):
        return True
    return len(words(reference)) > SHORT_WORDS and has_become_likely(loss, base_loss)


def has_become_likely(loss: float | None, base_loss: float | None, kind: Kind = "task") -> bool:
    """Whether a loss lies clearly below the base model's: by a tenth, of a document by a hundredth."""
    share = _DOCUMENT_SHARE if kind == "documents" else _LEARNED_SHARE
    return loss is not None and base_loss is not None and loss <= (1 - share) * base_loss
