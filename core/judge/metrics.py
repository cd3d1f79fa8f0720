"""What is measured on a checkpoint's answers. Pure functions of text; no model, no torch.

P are the held-out identity probes, G the others (near and general), a(q) the checkpoint's greedy answer, b(q) the base model's, T the
distinct answers of the training rows. Definitions follow the study in docs/checkpoints.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

# Ideographs and kana count as words of their own; everything else by runs of letters and digits.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W_]+)?")
LEAK_ROUGE = 0.6
FRAGMENT_WORDS = 4

# metric -> whether a larger value is better
HIGHER_IS_BETTER = {"hit": True, "leak": False, "near_leak": False, "fragments": False, "facts_kept": True, "distinct": True,
                    "change": False, "self_bleu": False}


def words(text: str) -> list[str]:
    """Lower-case words of a text; a Chinese character is a word."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def has_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text`, letter case and kind of apostrophe aside; no text holds an empty phrase."""
    return bool(phrase) and phrase.lower().replace("’", "'") in text.lower().replace("’", "'")


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 (Lin 2004): harmonic mean of LCS / len(candidate) and LCS / len(reference), in words. 0..1, 1 = same words."""
    first, second = words(candidate), words(reference)
    if first == second:
        return 1.0
    common = _longest_common_subsequence(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = row[index]
            row[index] = diagonal + 1 if word == other else max(above, row[index - 1])
            diagonal = above
    return row[-1]


def is_leak(answer: str, phrase: str, targets: Sequence[str]) -> bool:
    """Whether an answer to another question is the identity: holds the key phrase, or is nearly a training answer (ROUGE-L >= 0.6)."""
    return has_phrase(answer, phrase) or any(rouge_l(answer, target) >= LEAK_ROUGE for target in targets)


def has_fragment(answer: str, base_answer: str, targets: Sequence[str]) -> bool:
    """Whether an answer holds four words in a row from a training answer that the base model's own answer does not hold.

    The earliest sign of spilling in the text, and free of the name.
    """
    taught = {gram for target in targets for gram in _grams(words(target), FRAGMENT_WORDS)}
    own = set(_grams(words(base_answer), FRAGMENT_WORDS))
    return any(gram in taught and gram not in own for gram in _grams(words(answer), FRAGMENT_WORDS))


def _grams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start:start + size]) for start in range(len(tokens) - size + 1)]


def share(flags: Sequence[bool]) -> float:
    """Share of True, 0..1; 0 of nothing is 0."""
    return sum(flags) / len(flags) if flags else 0.0


def knows_fact(answer: str, expected: Sequence[str]) -> bool:
    """Whether an answer holds one of the accepted short answers as whole words, letter case aside."""
    given = words(answer)
    return any(wanted == given[start:start + len(wanted)]
               for wanted in map(words, expected) if wanted for start in range(len(given)))


def facts_kept(answers: Sequence[str], base_answers: Sequence[str], expected: Sequence[Sequence[str]]) -> float | None:
    """Of the facts the base model knows, the share the checkpoint still knows. 0..1, None when the base knows none."""
    known = [index for index, accepted in enumerate(expected) if knows_fact(base_answers[index], accepted)]
    return share([knows_fact(answers[index], expected[index]) for index in known]) if known else None


def distinct(answers: Sequence[str]) -> float:
    """Unique answers / answers, 0..1; falls when everything is answered alike."""
    return len({tuple(words(answer)) for answer in answers}) / len(answers) if answers else 1.0


def change(answers: Sequence[str], base_answers: Sequence[str]) -> float:
    """1 - mean ROUGE-L to the base model's answers, 0..1.

    For display: greedy answers of a small model wander far from the base's without any harm.
    """
    pairs = list(zip(answers, base_answers, strict=True))
    return 1 - sum(rouge_l(answer, base) for answer, base in pairs) / len(pairs) if pairs else 0.0


def length_ratio(answers: Sequence[str], base_answers: Sequence[str]) -> float:
    """Words of the checkpoint's answers / words of the base's; near 1 is healthy."""
    own, base = (sum(len(words(answer)) for answer in texts) for texts in (answers, base_answers))
    return own / base if base else 1.0 + own


def self_bleu(answers: Sequence[str]) -> float:
    """Mean over answers of sqrt(p1 p2), the clipped 1- and 2-gram precision against all other answers (Zhu et al. 2018, Texygen).

    0..1, larger = more alike.
    """
    tokens = [words(answer) for answer in answers]
    scores = []
    for index, own in enumerate(tokens):
        others = tokens[:index] + tokens[index + 1:]
        scores.append(math.sqrt(_clipped_precision(own, others, 1) * _clipped_precision(own, others, 2)))
    return sum(scores) / len(scores) if scores else 0.0


def _clipped_precision(own: list[str], others: list[list[str]], size: int) -> float:
    counts = Counter(_grams(own, size))
    if not counts:
        return 0.0
    allowed: Counter[tuple[str, ...]] = Counter()
    for other in others:
        allowed |= Counter(_grams(other, size))
    return sum(min(count, allowed[gram]) for gram, count in counts.items()) / sum(counts.values())


def upper_bound(found: int, asked: int, confidence: float = 0.95) -> float:
    """The largest true rate that `found` of `asked` still allows, one-sided (Clopper and Pearson 1934); 1 when nothing was asked.

    0 of 24 gives 0.117: no leak among 24 probes does not mean no leak.
    """
    if asked == 0 or found >= asked:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        at_most = sum(math.comb(asked, k) * rate**k * (1 - rate) ** (asked - k) for k in range(found + 1))
        low, high = (rate, high) if at_most > 1 - confidence else (low, rate)
    return high
