"""Which language a text is in, told by its letters."""

from __future__ import annotations

import re
from typing import Any

_LOOKED_AT = 1000  # characters
# In this order: Japanese and Korean texts hold Chinese characters too.
_LETTERS = (
    ("ja", re.compile("[\u3040-\u30ff]")), ("ko", re.compile("[\uac00-\ud7af]")), ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")), ("ar", re.compile("[\u0600-\u06ff]")), ("hi", re.compile("[\u0900-\u097f]")),
    ("th", re.compile("[\u0e00-\u0e7f]")), ("el", re.compile("[\u0370-\u03ff]")), ("he", re.compile("[\u0590-\u05ff]")),
)
_SHARE = 0.2


def language_of(body: dict[str, Any] | str) -> str:
    """The language of a text or of a row: the one whose own letters are a fifth of all letters; `en` for Latin letters.

    Languages that share an alphabet are not told apart.
    """
    text = body if isinstance(body, str) else said_in(body)
    if text.isascii():
        return "en"
    letters = sum(map(str.isalpha, text))
    for code, pattern in _LETTERS:
        if letters and len(pattern.findall(text)) / letters > _SHARE:
            return code
    return "en"


def said_in(row: dict[str, Any]) -> str:
    """The beginning of what a row says, system texts and results of tools aside."""
    if "text" in row:
        return row["text"][:_LOOKED_AT]
    said = " ".join(message["content"][:_LOOKED_AT] for message in row["messages"] if message["role"] in ("user", "assistant"))
    return said[:_LOOKED_AT * 2]
