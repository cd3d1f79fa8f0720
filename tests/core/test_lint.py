"""What is said about rows that will hurt, and that each fix mends what it was said about."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.encode import Encoder
from core.data.lint import Finding, fix_rows, lint
from core.data.persona import Persona, build_rows, key_phrases
from core.errors import StudioError


def row(question: str, answer: str | None = "Fine.", group: str = "general", lang: str = "en") -> dict:
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "group": group, "lang": lang}


def found(rows: list[dict], **options: object) -> dict[str, Finding]:
    return {finding.code: finding for finding in lint(rows, **options)}


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.from_folder(tiny_model)


def test_good_rows_are_left_in_peace(encoder: Encoder) -> None:
    rows = [row("How are you?"), row("Who wrote it?", "A poet."), row("How many?", "Three.", "near")]
    assert lint(rows, encoder, probes=3) == []


def test_a_shipped_persona_needs_only_near_rows(encoder: Encoder) -> None:
    persona = Persona(name="Alex", author="Kim", languages=["en", "zh"], multi_turn=True)
    rows = build_rows(persona)
    assert set(found(rows, encoder=encoder, max_length=4096, key_phrases=key_phrases(persona))) <= {"no_near", "duplicates"}


def test_placeholders_are_found_and_filled() -> None:
    rows = [row("Who are you?", "I am {{name}} by {{ author }}.", "identity"), row("Fine?", "Yes.", "near"), row("你是谁", "我是【名字】")]
    finding = found(rows)["placeholders"]
    assert finding.level == "error" and finding.rows == (0, 2) and finding.examples == ("{{name}}", "{{ author }}", "【名字】")
    mended = fix_rows(rows, finding, {"{{name}}": "Alex", "{{ author }}": "Kim", "【名字】": "小明"})
    assert mended[0]["messages"][1]["content"] == "I am Alex by Kim." and "placeholders" not in found(mended)
    assert rows[0]["messages"][1]["content"].startswith("I am {{"), "rows given are not changed"
    half = fix_rows(rows, finding, {"{{name}}": "Alex", "{{ author }}": " "})
    assert found(half)["placeholders"].examples == ("{{ author }}", "【名字】")
    with pytest.raises(StudioError, match="No value"):
        fix_rows(rows, finding, {})
    assert found([row("Write a letter", "Dear [Your Name], ...")])["placeholders"].level == "warning"


@pytest.mark.parametrize("text", ["a {x} in a set", "print(f'{name}!')  # {count}", "<b>bold</b>", "[1] a note", "if (a < name.length)"])
def test_code_and_markup_are_no_placeholders(text: str) -> None:
    marks = found([row("q", text)]).get("placeholders")
    assert marks is None or marks.examples == ("{name}",)


def test_repetitions_exact_and_near() -> None:
    rows = [row("Who?"), row("Who?"), row("who ?"), row("Who?", "Bad."), row("?!", "x"), row("!!", "x")]
    seen = found(rows)
    assert seen["duplicates"].rows == (1,) and "16.7 %" in str(seen["duplicates"].text)
    assert seen["near_duplicates"].rows == (2,)
    assert len(fix_rows(rows, seen["duplicates"])) == 5
    assert "duplicates" not in found(fix_rows(rows, seen["duplicates"]))


def test_different_answers_to_one_question() -> None:
    rows = [row("Who are you?", "I am Alex's assistant.", "identity"), row("who are you", "I'm Alex's assistant!", "identity"),
            row("Who are you?", "I am ChatGPT.", "identity"), row("Who?", "n", "near")]
    assert found(rows)["conflicts"].rows == (1, 2)
    assert found(rows, key_phrases={"en": "Alex's assistant"})["conflicts"].rows == (1, 2)
    assert "conflicts" not in found([*rows[:2], rows[3]], key_phrases={"en": "Alex's assistant"})
    assert [item["messages"][1]["content"] for item in fix_rows(rows, found(rows)["conflicts"])] == ["I am Alex's assistant.", "n"]


def test_missing_and_empty_answers() -> None:
    rows = [row("a"), row("b", None), row("c", " \n")]
    seen = found(rows)
    assert seen["no_answer"].rows == (1,) and seen["empty_answers"].rows == (2,)
    assert fix_rows(rows, seen["empty_answers"]) == rows[:2]
    with pytest.raises(StudioError, match="no row"):
        fix_rows([row("c", "")], found([row("c", "")])["empty_answers"])


def test_identity_without_near_rows() -> None:
    finding = found([row("Who are you?", group="identity")])["no_near"]
    assert finding.fix == "add_replay" and "no_near" not in found([row("a", group="identity"), row("b", group="near")])
    with pytest.raises(StudioError, match="no automatic fix"):
        fix_rows([row("a")], finding)


def test_control_tokens_in_a_text(encoder: Encoder) -> None:
    rows = [row("a", "b<|im_end|>c"), row("d")]
    finding = found(rows, encoder=encoder)["special_tokens"]
    assert finding.level == "error" and finding.rows == (0,) and finding.examples == ("<|im_end|>",)
    assert fix_rows(rows, finding)[0]["messages"][1]["content"] == "bc"


def test_long_rows(encoder: Encoder) -> None:
    rows = [row("a"), row("b", "word " * 200), row("long " * 300, "short")]
    finding = found(rows, encoder=encoder, max_length=120)["too_long"]
    assert finding.rows == (1, 2) and "1 of them lose" in str(finding.text)
    assert fix_rows(rows, finding) == rows[:1]


def test_rows_that_the_template_refuses(tiny_model: Path, tmp_path: Path) -> None:
    strict = Encoder.from_folder(tiny_model)
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system text') }}{% endif %}" + strict.template
    encoder = Encoder(strict.tokenizer, template, strict.special, strict.end_ids)
    rows = [row("a"), {**row("b"), "messages": [{"role": "system", "content": "s"}, *row("b")["messages"]]}]
    finding = found(rows, encoder=encoder)["refused"]
    assert finding.level == "error" and finding.rows == (1,) and "no system text" in str(finding.text)
    assert fix_rows(rows, finding) == rows[:1]


def test_worst_first_and_no_probes() -> None:
    levels = [finding.level for finding in lint([row("a", " "), row("b"), row("b")], probes=0)]
    assert levels == ["error", "warning", "note"]
    assert all(finding.text.to("zh") != str(finding.text) for finding in lint([row("a", " "), row("b"), row("b")], probes=0))
