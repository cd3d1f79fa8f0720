"""What a user or a model wrote is shown as it was written, whatever markdown and Streamlit would make of it."""

from __future__ import annotations

import pytest

from studio.i18n import plain

JOINER = "\u2060"


@pytest.mark.parametrize("text", ["->", "<-", "<->", "--", ">=", "<=", "~=", ":smile:", ":material/home:", ":streamlit:", ":+1:",
                                  "http://example.com", "HTTPS://example.com", "www.example.com", "a@example.com"])
def test_no_arrow_dash_picture_or_link_is_made_of_a_text(text: str) -> None:
    shown = plain(text).replace("\\", "")
    assert JOINER in shown and shown.replace(JOINER, "") == text


@pytest.mark.parametrize("text", ["&lt;", "<b>", "![x](y)", "`a`", "$x$", "# a", "1. a", "a | b", "[a](b)", "~~a~~", "**a**", ":red[a]"])
def test_markup_is_escaped(text: str) -> None:
    assert plain(text).count("\\") >= 1 and plain(text).replace("\\", "").replace(JOINER, "") == text


def test_ordinary_text_and_numbers_stay() -> None:
    assert plain("你好，world") == "你好，world" and plain(12.5) == "12.5" and plain("snake case: 12:30") == "snake case\\: 12\\:30"
