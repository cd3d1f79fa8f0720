"""What is measured on a checkpoint's answers. Pure functions of text; no model, no torch.

P are the probes for what is taught, G the others (near and general), a(q) the checkpoint's greedy answer, b(q) the base model's, T the
distinct answers of the training rows. Definitions follow the study in docs/checkpoints.md. Each function says its formula, its range
and which way is better; losses are mean negative log-likelihoods in nats per token, from `core.judge.forced`.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache

# Ideographs and kana count as words of their own; everything else by runs of letters and digits.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W_]+)?")
LEAK_ROUGE = 0.6
FRAGMENT_WORDS = 4

# metric -> whether a larger value is better; the length ratio is best near 1, and KL says how far, not how good
HIGHER_IS_BETTER = {
    "hit": True, "target_nll": False, "leak": False, "near_leak": False, "fragments": False, "near_fragments": False, "gap": True,
    "hijack": False, "facts_kept": True, "distinct": True, "dnll": False, "self_bleu": False, "self_bleu_rise": False, "change": False,
    "compression": True, "own_passed": True, "perplexity_fall": True}


@lru_cache(maxsize=4096)  # base answers and taught ones are compared with every step's
def words(text: str) -> tuple[str, ...]:
    """Lower-case words of a text; a Chinese character is a word."""
    return tuple(word.replace("’", "'") for word in _WORD.findall(text.lower()))


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


def is_close(answer: str, target: str) -> bool:
    """Whether two texts are the same but for a few words: ROUGE-L F1 >= 0.6."""
    first, second = words(answer), words(target)
    # A common subsequence is no longer than the words in common: most pairs are told apart by counting.
    shared = sum((Counter(first) & Counter(second)).values())
    if 2 * shared < LEAK_ROUGE * (len(first) + len(second)):
        return False
    return rouge_l(answer, target) >= LEAK_ROUGE


def is_leak(answer: str, phrase: str, targets: Sequence[str]) -> bool:
    """Whether an answer to another question is what was taught: holds the key phrase, or is close to a training answer.

    leak = share of G for which this is so; 0 to 1, down.
    """
    return has_phrase(answer, phrase) or any(is_close(answer, target) for target in targets)


def taught_grams(targets: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """The four-word sequences of the training answers."""
    return frozenset(gram for target in targets for gram in _grams(words(target), FRAGMENT_WORDS))


def has_fragment(answer: str, base_answer: str, taught: Collection[tuple[str, ...]]) -> bool:
    """Whether an answer holds four words in a row from a training answer that the base model's own answer does not hold.

    The earliest sign of spilling in the text, and free of the name. fragments = share of G for which this is so; 0 to 1, down.

    Args:
        taught: from `taught_grams`.
    """
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
    return len({words(answer) for answer in answers}) / len(answers) if answers else 1.0


def change(answers: Sequence[str], base_answers: Sequence[str]) -> float:
    """1 - mean ROUGE-L to the base model's answers, 0..1.

    For display: greedy answers of a small model wander far from the base's without any harm.
    """
    pairs = list(zip(answers, base_answers, strict=True))
    return 1 - sum(rouge_l(answer, base) for answer, base in pairs) / len(pairs) if pairs else 0.0


def length_ratio(tokens: Sequence[int], base_tokens: Sequence[int]) -> float:
    """Tokens of the checkpoint's answers to G / tokens of the base's; 0 up, near 1 is healthy (0.85 to 1.15 in the study)."""
    own, base = sum(tokens), sum(base_tokens)
    return own / base if base else 1.0 + own


def self_bleu(answers: Sequence[str]) -> float:
    """Mean over answers of sqrt(p1 p2), the clipped 1- and 2-gram precision against all other answers (Zhu et al. 2018, Texygen).

    0 to 1, down: it rises before everything is answered alike. Compare it with the base's: `self_bleu_rise` is the difference.
    """
    if not answers:
        return 0.0
    tokens = [words(answer) for answer in answers]
    one, two = (_clipped_precisions([Counter(_grams(own, size)) for own in tokens]) for size in (1, 2))
    return sum(math.sqrt(first * second) for first, second in zip(one, two, strict=True)) / len(answers)


def _clipped_precisions(counts: Sequence[Counter[tuple[str, ...]]]) -> list[float]:
    """For each text the share of its n-grams that another text holds too, each counted at most as often as one other text holds it."""
    most: dict[tuple[str, ...], tuple[int, int]] = {}  # the two largest counts of an n-gram: without a text, one of them is left
    for own in counts:
        for gram, count in own.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (max(first, count), max(second, min(first, count)))
    found = []
    for own in counts:
        allowed = (min(count, second if count == first else first) for gram, count in own.items() for first, second in [most[gram]])
        found.append(sum(allowed) / sum(own.values()) if own else 0.0)
    return found


def compression(answers: Sequence[str]) -> float:
    """Bytes of all answers together after zlib / before; 0 to about 1, up: answers that repeat each other shrink. For display."""
    whole = "\n".join(answers).encode()
    return len(zlib.compress(whole, 9)) / len(whole) if whole else 1.0


def target_nll(losses: Sequence[Sequence[float]]) -> float | None:
    """Mean over questions of the smallest loss among the taught answers; nats per token, 0 to infinity.

    Over P it is the target NLL (down: it finds the taught answer likely where it belongs), over G the leak NLL (up).
    The general form, for rows with one answer each: the mean loss of that answer.

    Args:
        losses: per question, per answer of T: -1/|t| sum log p(t_i | q, t_<i).
    """
    return sum(map(min, losses)) / len(losses) if losses else None


def gap(away: float | None, at_home: float | None) -> float | None:
    """Selectivity gap: the loss of what was taught where it does not belong minus the loss where it does; nats per token, up.

    For an identity: leak NLL - target NLL. In general: mean NLL(y_i | x_j) - NLL(y_i | x_i) over pairs of held-out rows. Near 0 the
    model says it whatever is asked; in the study healthy snapshots had 0.5 and more.
    """
    return None if away is None or at_home is None else away - at_home


def hijack(first: Sequence[int], base_first: Sequence[int], taught_first: Collection[int]) -> float:
    """Share of G whose most probable first token is the first of a taught answer and is not the base's own; 0 to 1, down."""
    return share([now in taught_first and now != before for now, before in zip(first, base_first, strict=True)])


def perplexity_fall(falls: Sequence[float]) -> float:
    """1 - exp(-mean fall): the share of the base model's perplexity on documents that is gone; below 1, less than 0 where it has risen.

    Args:
        falls: per document, the base's loss minus the checkpoint's, in nats per token.
    """
    return 1 - math.exp(-sum(falls) / len(falls))


def dnll(losses: Sequence[float], base_losses: Sequence[float], tokens: Sequence[int]) -> float | None:
    """NLL of the base's own answers b(q) under the checkpoint minus under the base, mean per token over G; nats, about 0 or below is good.

    Args:
        losses: per question, summed over the tokens of b(q).
        base_losses: the same under the base model.
        tokens: tokens of b(q).
    """
    return (sum(losses) - sum(base_losses)) / sum(tokens) if sum(tokens) else None


def kl(sums: Sequence[float], tokens: Sequence[int]) -> float | None:
    """KL(base || checkpoint), mean over the tokens of b(q) over G: sum_v p_base log(p_base / p_checkpoint); nats, >= 0.

    For display: compare it within one recipe only. Between recipes it did not tell healthy from broken.
    """
    return sum(sums) / sum(tokens) if sum(tokens) else None


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
