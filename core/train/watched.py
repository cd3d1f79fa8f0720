"""What a look reads: a few questions of the run's probes, each with two of the taught answers of its language. No torch.

Of several taught answers the likeliest counts, as in the scores: a model that has learned four ways of saying its name finds each single
one unlikely. Two that begin alike cost little more than one.

Without identity rows there is no one sentence that everything could collapse into; then some rows' own answers are read, once behind
their own question and once behind another one's (the general form of the gap).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.encode import Encoder
from core.data.library import GENERAL, IDENTITY, NEAR, Dataset
from core.judge.branches import Question, grow

# (identity, near, general) questions, from few to many; near ones fail first.
SIZES = ((3, 3, 2), (5, 6, 4), (8, 8, 8))
_ANSWERS = 2
# Near questions are watched more than they are asked in the scores, where they are a third of the others; so is their weight here.
_NEAR_SHARE = 1 / 3
_PAIRS = (4, 6, 8)
_ROWS_READ = 200
_ANSWER_TOKENS = 24
# Of the questions read, so many are answered too now and then, for people.
_SHOWN = {IDENTITY: 1, NEAR: 1, GENERAL: 1}


@dataclass(frozen=True)
class Watched:
    """The material of a look.

    Attributes:
        own: questions whose answer is taught: the taught answer's loss under them is the target loss.
        others: questions that have other answers: the taught answer's loss under them is the leak loss.
        weights: of each of `others` in the leak loss; they sum to 1.
        taught_first: first tokens of the taught answers; empty where many different answers are taught.
        shown: probes that are answered for people.
    """

    own: list[Question]
    others: list[Question]
    weights: list[float]
    taught_first: frozenset[int]
    shown: list[dict[str, Any]]

    @property
    def questions(self) -> list[Question]:
        return [*self.own, *self.others]

    @property
    def unanswered(self) -> list[Question]:
        """The other questions alone: all that is asked of the untrained model is the first word it would say."""
        return [Question(question.prompt) for question in self.others]

    @property
    def tokens(self) -> int:
        return tokens_of(self.questions)


def tokens_of(questions: Sequence[Question]) -> int:
    """Tokens that are read: what all prompts begin with once, then each question with its answers."""
    prompts = [list(question.prompt) for question in questions]
    shared = next((place for place, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1), 0)
    return shared + sum(len(grow(question, shared).tokens) if len(question.prompt) > shared else 0 for question in questions)


def choose_watched(dataset: Dataset, encoder: Encoder, looks_tokens: float) -> Watched | None:
    """What to read at each look; None when the dataset holds no conversation.

    Args:
        dataset: whose probes and rows are read.
        encoder: of the model in training.
        looks_tokens: a look may read so many tokens; the smallest choice is taken where none fits.
    """
    answers = _taught_answers(dataset)
    choices = [_of_identity(dataset, encoder, answers, counts) for counts in SIZES] if answers and dataset.probes() else [
        _of_pairs(dataset, encoder, count) for count in _PAIRS]
    found = [choice for choice in choices if choice is not None]
    fitting = [choice for choice in found if choice.tokens <= looks_tokens]
    return fitting[-1] if fitting else found[0] if found else None


def _taught_answers(dataset: Dataset) -> dict[str, list[str]]:
    """In each language the shortest of the identity rows' commonest answers."""
    if IDENTITY not in dataset.card.groups:
        return {}
    counts: dict[str, Counter[str]] = {}
    for row in dataset.rows([IDENTITY]):
        messages = row.get("messages", [])
        if messages and messages[-1]["role"] == "assistant" and messages[-1]["content"].strip():
            counts.setdefault(row.get("lang", ""), Counter())[messages[-1]["content"]] += 1
    return {language: sorted(counter, key=lambda text: (-counter[text], len(text), text))[:_ANSWERS]
            for language, counter in counts.items()}


def _of_identity(dataset: Dataset, encoder: Encoder, answers: dict[str, list[str]], counts: Sequence[int]) -> Watched | None:
    probes = dataset.probes()
    own, near, general = (_in_turn([probe for probe in probes if probe["group"] == group], count)
                          for group, count in zip((IDENTITY, NEAR, GENERAL), counts, strict=True))
    asked = [_question(probe, answers, encoder) for probe in (*own, *near, *general)]
    if not own or not (near or general):
        return None
    first = frozenset(int(answer[0]) for question in asked for answer in question.answers if answer)
    near_share = _NEAR_SHARE if near and general else float(bool(near))
    weights = [near_share / len(near)] * len(near) + [(1 - near_share) / max(1, len(general))] * len(general)
    shown = [probe for part in (own, near, general) for probe in part[:_SHOWN[part[0]["group"]]] if part]
    return Watched(asked[:len(own)], asked[len(own):], weights, first, shown)


def _question(probe: dict[str, Any], answers: dict[str, list[str]], encoder: Encoder) -> Question:
    """A probe with the taught answers of its language, or of the first language there is."""
    texts = answers.get(probe.get("lang", "")) or next(iter(answers.values()))
    return Question(*encoder.encode_answers(probe["messages"], texts))


def _in_turn(probes: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` probes, the languages taking turns."""
    by_language: dict[str, list[dict[str, Any]]] = {}
    for probe in probes:
        by_language.setdefault(probe.get("lang", ""), []).append(probe)
    turns = max(map(len, by_language.values()), default=0)
    return [own[turn] for turn in range(turns) for own in by_language.values() if turn < len(own)][:count]


def _of_pairs(dataset: Dataset, encoder: Encoder, count: int) -> Watched | None:
    """Rows with different answers: each answer behind its own question, and behind the next row's."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in dataset.first_rows(_ROWS_READ):
        messages = row.get("messages", [])
        if len(messages) > 1 and messages[-1]["role"] == "assistant" and messages[-1]["content"].strip():
            pairs.setdefault(messages[-1]["content"], messages[:-1])
    chosen = sorted(pairs.items(), key=lambda pair: (sum(len(message["content"]) for message in pair[1]), pair[0]))[:count]
    if len(chosen) < 2:
        return None
    encoded = [encoder.encode_answers(messages, [answer]) for answer, messages in chosen]
    own = [Question(prompt, [answers[0][:_ANSWER_TOKENS]]) for prompt, answers in encoded]
    others = [Question(encoded[(place + 1) % len(encoded)][0], question.answers) for place, question in enumerate(own)]
    return Watched(own, others, [1 / len(others)] * len(others), frozenset(), _in_turn(dataset.probes(), sum(_SHOWN.values())))
