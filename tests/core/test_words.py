"""A sentence keeps its meaning through files and languages."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from core import words
from core.errors import JobFailed, StudioError
from core.words import Text


@pytest.fixture
def two_sentences(monkeypatch):
    monkeypatch.setattr(words, "chinese_templates", lambda: {"Step {step} of {what}.": "{what}的第 {step} 步。", "a run": "训练任务"})


def stored(text: Text) -> Text:
    return Text.from_json(json.loads(json.dumps(text.to_json())))


def test_a_sentence_in_both_languages(two_sentences):
    text = Text("Step {step} of {what}.", step=12, what=Text("a run"))
    assert str(text) == text.to("en") == "Step 12 of a run."
    assert text.to("zh") == stored(text).to("zh") == "训练任务的第 12 步。"
    assert stored(text) == text


def test_what_has_no_translation_is_said_in_english(two_sentences):
    assert Text("Never seen: {x}", x=1).to("zh") == "Never seen: 1"


@pytest.mark.parametrize("value", ["{braces} and {0}", "100%", "你好\n", "", None, True])
def test_values_are_taken_as_they_are(value):
    assert str(stored(Text("It is {value}.", value=value))) == f"It is {value}."


@pytest.mark.parametrize("number", [0.25, np.float32(0.25), np.float64(0.25)])
def test_numbers_stay_numbers(number):
    assert str(stored(Text("{x:.2f}", x=number))) == "0.25"
    assert str(stored(Text("{n:03d}", n=np.int64(7)))) == "007"


def test_other_values_become_their_text():
    assert str(stored(Text("{path} {number} {list}", path=Path("/a"), number=Decimal("1.50"), list=[1]))) == "/a 1.50 [1]"


def test_a_damaged_record_is_an_empty_sentence():
    assert str(Text.from_json({})) == ""


def test_an_error_is_a_problem_and_a_hint():
    error = StudioError("No {what}.", "Make {what}.", what="run")
    assert (str(error), str(error.problem), str(error.hint), error.exit_code) == ("No run.", "No run.", "Make run.", 2)
    again = JobFailed.from_texts(*(Text.from_json(error.to_json()[part]) for part in ("problem", "hint")))
    assert (str(again), str(again.hint), again.exit_code) == ("No run.", "Make run.", 1)
    assert isinstance(again, StudioError)


def test_both_parts_of_a_job_s_failure_keep_their_own_values():
    failure = JobFailed.from_texts(Text("Row {n}", n=1), Text("Look at {n}", n=2))
    assert (str(failure.problem), str(failure.hint)) == ("Row 1", "Look at 2")


def test_every_catalogue_is_read():
    merged = words.chinese_templates()
    files = list((Path(words.__file__).parent / "zh").glob("*.yaml"))
    assert len(files) >= 4 and len(merged) >= 100
