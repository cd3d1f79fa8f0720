"""Each metric against numbers worked out by hand."""

from __future__ import annotations

import pytest

from core.judge import metrics

TARGET = "I'm Alex's personal assistant, and I'm here to help."


@pytest.mark.parametrize(("text", "expected"), [
    ("I'm Alex’s assistant.", ["i'm", "alex's", "assistant"]),
    ("我是Alex的小助手。", ["我", "是", "alex", "的", "小", "助", "手"]),
    ("1. One, two", ["1", "one", "two"]), ("", []), ("...", []),
])
def test_words(text, expected):
    assert list(metrics.words(text)) == expected


def test_rouge_l():
    # longest common subsequence of "the cat sat" and "the cat was sat": 3 words; 2*3 / (3+4)
    assert metrics.rouge_l("The cat sat.", "the cat was sat") == pytest.approx(6 / 7)
    assert metrics.rouge_l("a b", "c d") == 0.0 and metrics.rouge_l("", "") == 1.0 and metrics.rouge_l("x", "X!") == 1.0


@pytest.mark.parametrize(("answer", "leaks"), [
    ("Hello, I am alex’s personal assistant", True),           # the phrase, other apostrophe
    ("I'm here to help, and I'm a personal assistant.", False),  # 5 of 9+9 words in order: 0.56
    ("I'm Bob's personal assistant, and I'm here to help.", True),  # all words but the name: 8/9
    ("Alexander Graham Bell.", False), ("", False),
])
def test_leak(answer, leaks):
    assert metrics.is_leak(answer, "Alex's personal assistant", [TARGET]) is leaks


def test_fragments_are_four_words_in_a_row_that_the_base_does_not_say():
    answer = "Paris. And I'm here to help."
    assert metrics.has_fragment(answer, "Paris.", metrics.taught_grams([TARGET]))  # "and i'm here to"
    assert not metrics.has_fragment("I'm here to help.", "I'm here to help you.", metrics.taught_grams([TARGET]))  # the base says it too
    assert not metrics.has_fragment("here to help", "", metrics.taught_grams([TARGET]))  # three words only


def test_facts_count_only_where_the_base_knew():
    kept = metrics.facts_kept(["It is Paris.", "five", "indicate"], ["Paris", "4", "a cat"], [["Paris"], ["4", "four"], ["cat"]])
    assert kept == pytest.approx(1 / 3)                                          # "indicate" holds no word "cat"
    assert metrics.facts_kept(["Paris"], ["London"], [["Paris"]]) is None
    assert metrics.facts_kept(["巴黎是首都"], ["首都是巴黎"], [["巴黎"]]) == 1.0


def test_distinct_change_and_length():
    answers = ["Yes.", "yes", "No, never"]
    assert metrics.distinct(answers) == pytest.approx(2 / 3) and metrics.distinct([]) == 1.0
    assert metrics.change(["a b", "c"], ["a b", "d"]) == pytest.approx(0.5) and metrics.change([], []) == 0.0
    assert metrics.length_ratio([3, 3], [4, 0]) == 1.5
    assert metrics.length_ratio([0], [0]) == 1.0 and metrics.length_ratio([2], [0]) == 3.0


def test_self_bleu_by_hand():
    # every answer: p1 = 2/3 (a, b of a b x), p2 = 1/2 ("a b" of "a b", "b x")
    assert metrics.self_bleu(["a b c", "a b d", "a b e"]) == pytest.approx((2 / 3 * 1 / 2) ** 0.5)
    assert metrics.self_bleu(["same words here"] * 3) == 1.0 and metrics.self_bleu(["a b", "c d"]) == 0.0


@pytest.mark.parametrize(("found", "asked", "bound"), [(0, 24, 0.117), (0, 73, 0.0402), (1, 24, 0.183), (24, 24, 1.0), (0, 0, 1.0)])
def test_upper_bound_is_that_of_clopper_and_pearson(found, asked, bound):
    """0 of n: 1 - 0.05^(1/n); 1 of 24: the 95 % quantile of Beta(2, 23) = 0.183 (tables)."""
    assert metrics.upper_bound(found, asked) == pytest.approx(bound, abs=6e-4)
