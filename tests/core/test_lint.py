"""What is said about rows that will hurt, and that each fix mends what it was said about."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.encode import Encoder
from core.data.findings import Finding
from core.data.fixes import fix_rows
from core.data.lint import Plan, lint
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
    seen = found(rows, encoder=encoder, max_length=4096, key_phrases=key_phrases(persona))
    assert set(seen) <= {"no_near", "duplicates", "identity_share"}


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


def talk(*turns: tuple[str, str], **extra: object) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns], "group": "general", "lang": "en", **extra}


LONG = "The river runs from the mountains through three valleys and past the old mill before it meets the sea near the harbour."


def test_nearly_the_same_rows_are_found_and_others_are_not() -> None:
    same = LONG.replace("old mill", "old grey mill")
    rows = [row("Describe the river.", LONG), row("Describe the river.", same), row("Describe the lake.", LONG),
            row("Describe the town.", LONG[::-1])]
    assert found(rows)["near_duplicates"].rows == (1,), "another question with the same answer is another row"
    many = [row(f"Tell me fact number {number} about birds.", f"Fact {number}: {LONG[number % 40:]}{LONG[:number % 40]}")
            for number in range(300)]
    assert "near_duplicates" not in found([row("a"), row("b")])
    assert found([*many, many[7] | {"messages": [many[7]["messages"][0], {"role": "assistant", "content":
                  many[7]["messages"][1]["content"] + "!"}]}])["near_duplicates"].rows[-1] == 300


def test_answers_in_another_language() -> None:
    zh = "法国的首都是巴黎，它位于塞纳河畔，是世界著名的城市之一。"
    asked = "法国的首都是哪里？"
    rows = [row("What is the capital of France?", zh), row(asked, zh), row(asked, "The capital of France is Paris, of course."),
            row("写一段代码，打印你好。", "```python\nprint('hello world, this is a long line of code')\n```"), row(asked, "Paris"),
            {"text": zh, "group": "general", "lang": "zh"}]
    finding = found(rows)["wrong_language"]
    assert finding.rows == (0, 2) and "33.3 %" in str(finding.text) and len(fix_rows(rows, finding)) == 4


def test_personal_data_is_hinted_at_and_masked() -> None:
    texts = ["Write to jane.doe@mail.co.uk.", "Call 415-867-5309 now.", "手机 13812345678", "身份证 11010519491231002X",
             "Card 4111 1111 1111 1111", "key sk-abcdefghijklmnopqrstuvwx"]
    innocent = ["me@example.com", "In 2024 it cost 1234567.", "version 1.2.3", "call 212-555-0199", "4111 1111 1111 1112", "1 + 1 = 2",
                "a@b"]
    rows = [row(f"q{number}", text) for number, text in enumerate([*texts, *innocent])]
    finding = found(rows)["personal_data"]
    assert finding.rows == tuple(range(6)) and "jane.doe@mail" not in str(finding.text)
    masked = [item["messages"][1]["content"] for item in fix_rows(rows, finding)]
    assert masked[:5] == ["Write to [email].", "Call [phone] now.", "手机 [phone]", "身份证 [id]", "Card [card]"] and "[key]" in masked[5]
    assert masked[6:] == innocent and "personal_data" not in found(fix_rows(rows, finding))


def test_system_texts_that_differ() -> None:
    kind = ("system", "Be kind.")
    rows = [talk(kind, ("user", "a"), ("assistant", "b")), talk(kind, ("user", "c"), ("assistant", "d")),
            talk(("user", "e"), ("assistant", "f"))]
    finding = found(rows)["different_systems"]
    assert finding.rows == (2,) and "2 different" in str(finding.text) and "66.7 %" in str(finding.text)
    assert all(item["messages"][0]["role"] == "user" for item in fix_rows(rows, finding))
    assert "different_systems" not in found(rows[:2])


def test_identity_rows_that_take_all_updates() -> None:
    rows = [row(f"Who are you {number}?", "I am Alex.", "identity") for number in range(8)] + [row("near", "No.", "near")]
    text = str(found(rows, plan=Plan(100, 9))["identity_share"].text)
    assert "88.9 %" in text and "100 updates of 9 rows" in text and "about 800 times" in text
    assert "identity_share" not in found([*rows, *(row(f"other {number}", f"{number}") for number in range(8))])


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def test_calls_that_the_template_leaves_out(encoder: Encoder) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    rows = [{"messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                          {"role": "tool", "content": "wet"}, {"role": "assistant", "content": "Yes."}], "tools": tools,
             "group": "general", "lang": "en"}, row("a")]
    finding = found(rows, encoder=encoder)["tools_unseen"]
    assert finding.level == "error" and finding.rows == (0,) and "empty_answers" not in found(rows)
    mended = fix_rows(rows, finding)
    text = encoder.encode_row(mended[0]).text
    assert '"name": "weather", "arguments": {"city": "Paris"}' in text and "<tool_response>\nwet" in text and "<tools>" in text
    assert "tools_unseen" not in found(mended, encoder=encoder) and mended[1] == rows[1]
    writing = Encoder(encoder.tokenizer, encoder.template.replace("message['content']", "message['content'] + message.tool_calls | string"),
                      encoder.special, encoder.end_ids)
    assert "tools_unseen" not in found(rows, encoder=writing)


def test_documents_and_pairs_are_looked_at_too(encoder: Encoder) -> None:
    rows = [{"text": "Once {{name}} lived<|im_end|>", "group": "general", "lang": "en"}, {"text": " ", "group": "general", "lang": "en"},
            {**row("a"), "rejected": [{"role": "assistant", "content": "worse"}]}, {"text": LONG * 20, "group": "general", "lang": "en"}]
    seen = found(rows, encoder=encoder, max_length=64)
    assert (seen["placeholders"].rows, seen["special_tokens"].rows, seen["empty_answers"].rows, seen["preference_pairs"].rows) == (
        (0,), (0,), (1,), (2,))
    assert "too_long" not in seen and "no_answer" not in seen, "a long document is taken in pieces, nothing of it is cut"
    filled = fix_rows(rows, seen["placeholders"], {"{{name}}": "Alex"})
    assert filled[0]["text"] == "Once Alex lived<|im_end|>"

