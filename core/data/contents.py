"""What stands in the texts of rows and should not: placeholders, control tokens, personal data, the wrong language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from core.data.encode import Encoder
from core.data.findings import Finding, Row, percent, some
from core.data.languages import language_of
from core.data.library import IDENTITY, texts_of
from core.errors import StudioError
from core.words import Text

_SLOT = (r"your[ _]?(?:own[ _]?)?name|bot[ _]?name|model[ _]?name|assistant[ _]?name|user[ _]?name|company[ _]?name|name|author|company"
         r"|organi[sz]ation|developer|creator|owner|insert[^\]>}]{0,30}|名字|姓名|作者|公司|开发者")
_PLACEHOLDER = re.compile(
    r"\{\{(?=[^{}\n]*\w)\s*[^{}\n]{1,40}\s*\}\}|\{\s*(?:" + _SLOT + r")\s*\}|<\s*(?:" + _SLOT + r")\s*>|\[\s*(?:" + _SLOT
    + r")\s*\]|【\s*(?:" + _SLOT + r")\s*】", re.IGNORECASE)
# Patterns of data about a person, with a check where a pattern alone finds too much.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]+\.)+[a-zA-Z]{2,24}\b")
_PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w.])|(?<!\d)1[3-9]\d{9}(?!\d)")
_CHINESE_ID = re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)")
_CARD = re.compile(r"(?<![\d-])(?:\d{4}[ -]?){3}\d{4}(?![\d-])")
_KEY = re.compile(r"\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,})")
_MAYBE_PERSONAL = re.compile(r"@|\d[\d ().-]{5,}\d|sk-|AKIA|gh[pousr]_|hf_")  # one quick look before five slow ones
_MADE_UP = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|test|invalid|localhost)$|555[ .-]\d{4}$|^123[ .-]?456", re.IGNORECASE)
_FEWEST_LETTERS, _FEWEST_WORDS = 20, 4
_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]+`", re.DOTALL)


def placeholders(rows: Sequence[Row]) -> Finding | None:
    places, seen = _found(rows, _PLACEHOLDER.findall)
    if not places:
        return None
    # In running text "[Your Name]" may be meant, as in the draft of a letter; in an answer about oneself it never is.
    is_meant = not any(mark.startswith("{{") for mark in seen) and all(rows[place].get("group") != IDENTITY for place in places)
    return Finding("placeholders", "warning" if is_meant else "error", Text(
        "{count} rows still hold placeholders ({examples}): the model learns to say them word for word.",
        count=len(places), examples=some(seen)), places, "fill_placeholders", seen)


def special_tokens(rows: Sequence[Row], encoder: Encoder) -> Finding | None:
    names = sorted((encoder.tokenizer.id_to_token(token) for token in encoder.special_ids), key=len, reverse=True)
    places, seen = _found(rows, lambda text: [name for name in names if name in text])
    return Finding("special_tokens", "error", Text(
        "{count} rows hold control tokens of the model as text ({examples}): it takes them for the end of a turn and stops there.",
        count=len(places), examples=some(seen)), places, "strip_special_tokens", seen) if places else None


def personal_data(rows: Sequence[Row]) -> Finding | None:
    places, seen = _found(rows, lambda text: [found for _, found in personal_parts(text)])
    return Finding("personal_data", "warning", Text(
        "{count} rows hold what looks like personal data or a secret key ({examples}): the model may say it to anybody who asks.",
        count=len(places), examples=some(map(_hinted, seen))), places, "mask_personal_data", seen) if places else None


def personal_parts(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each e-mail address, telephone number, identity number, card number and secret key in a text."""
    if not _MAYBE_PERSONAL.search(text):
        return []
    found = [("key", match) for match in _KEY.findall(text)]
    found += [("email", match) for match in _EMAIL.findall(text)]
    found += [("id", match) for match in _CHINESE_ID.findall(text) if _is_chinese_id(match)]
    found += [("card", match) for match in _CARD.findall(text) if _is_card(match)]
    found += [("phone", match) for match in _PHONE.findall(text)]
    return [(kind, match) for kind, match in found if not _MADE_UP.search(match)]


def _is_chinese_id(number: str) -> bool:
    """The check digit of GB 11643-1999."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(number, weights, strict=False)) % 11] == number[-1].upper()


def _is_card(number: str) -> bool:
    """Luhn's check."""
    digits = [int(char) for char in number if char.isdigit()]
    doubled = [digit if place % 2 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(digits)]
    return sum(doubled) % 10 == 0 and len(set(digits)) > 1


def _hinted(text: str) -> str:
    """Enough of it to be found, not enough to be read."""
    return f"{text[:3]}…{text[-2:]}"


def wrong_language(rows: Sequence[Row]) -> Finding | None:
    """Answers in another language than their question, or than the row says. Code and short answers are left in peace."""
    places = tuple(place for place, row in enumerate(rows) if _is_foreign(row))
    return Finding("wrong_language", "warning", Text(
        "{count} of {total} rows ({share} %) are answered in another language than they are asked in: unless they are translations, the "
        "model learns to change the language.", count=len(places), total=len(rows), share=percent(len(places), len(rows))),
        places, "drop_rows") if places else None


def _is_foreign(row: Row) -> bool:
    if "text" in row or len(row["messages"]) < 2:
        return False
    asked = next((message["content"] for message in reversed(row["messages"]) if message["role"] == "user"), "")
    asked, answer = (_CODE.sub("", text) for text in (asked, row["messages"][-1]["content"]))
    letters = [sum(map(str.isalpha, text[:400])) for text in (asked, answer)]
    if letters[1] < _FEWEST_LETTERS or (answer.isascii() and len(answer.split()) < _FEWEST_WORDS) or letters[0] < 4:
        return False
    return language_of(asked) != language_of(answer)


def different_systems(rows: Sequence[Row]) -> Finding | None:
    """System texts that differ from row to row, none at all counting as one."""
    texts = Counter(row["messages"][0]["content"] if row["messages"] and row["messages"][0]["role"] == "system" else ""
                    for row in rows if "messages" in row)
    if len(texts) < 2:
        return None
    common, count = texts.most_common(1)[0]
    places = tuple(place for place, row in enumerate(rows) if "messages" in row and (
        row["messages"][0]["content"] if row["messages"][0]["role"] == "system" else "") != common)
    return Finding("different_systems", "warning", Text(
        "The rows have {count} different system texts, none at all counted as one ({share} % have the most common): the model learns to "
        "behave by them, and a chat with another one behaves in between.", count=len(texts), share=percent(count, sum(texts.values()))),
        places, "drop_systems")


def tools_unseen(rows: Sequence[Row], encoder: Encoder, most: int = 200) -> Finding | None:
    """Rows whose calls of tools the model's chat template leaves out."""
    calling = [place for place, row in enumerate(rows) if any(message.get("tool_calls") for message in row.get("messages", []))]
    is_any_rendered = False
    for place in calling[:: max(1, len(calling) // most)]:
        messages = rows[place]["messages"]
        silent = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        try:
            if encoder.render(messages) != encoder.render(silent):
                return None
            is_any_rendered = True
        except StudioError:
            continue  # a row that the template refuses is another finding
    if not is_any_rendered:
        return None
    return Finding("tools_unseen", "error", Text(
        "{count} rows call tools, and this model's chat template does not write the calls: the model would learn to say nothing there.",
        count=len(calling)), tuple(calling), "spell_out_tools")


def _found(rows: Sequence[Row], find: Callable[[str], Sequence[str]]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The rows in whose texts `find` finds something, and what it finds, each once."""
    places, seen = [], {}
    for place, row in enumerate(rows):
        marks = [mark for text in texts_of(row) for mark in find(text)]
        if marks:
            places.append(place)
            seen |= dict.fromkeys(marks)
    return tuple(places), tuple(seen)
