"""Every word of the pages, by key, in `en/*.yaml` and `zh/*.yaml`; the file's name is the first part of the key."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st
import yaml

from core.errors import StudioError
from core.words import LANGUAGES, Text
from studio.session import LANGUAGE

_FOLDER = Path(__file__).parent
_MARKDOWN = str.maketrans({character: "\\" + character for character in "\\`*_{}[]()<>#+-.!|~$:&"})
# What Streamlit still turns into an arrow, a dash, a picture or a link after all markdown is escaped. A character without width
# or break (U+2060) between the parts keeps it as it was written.
_REWRITTEN = re.compile(r"(?<=<)(?=[-=])|(?<=-)(?=[->])|(?<=[>~])(?==)|(?<=:)(?=[\w+-][\w/+-]*:)|(?<=http)(?=s?://)|(?<=www)(?=\.)|(?=@)",
                        re.IGNORECASE)


@cache
def words(language: str) -> dict[str, str]:
    """Key -> text of one language, as `home.title`."""
    return {f"{path.stem}.{key}": text for path in sorted((_FOLDER / language).glob("*.yaml"))
            for key, text in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def language() -> str:
    """The language of this session: `en` or `zh`."""
    chosen = st.session_state.get(LANGUAGE)
    return chosen if chosen in LANGUAGES else "en"


def t(key: str, **values: Any) -> str:
    """The text of `key` with its `{values}`; values are shown as they are, never as markup."""
    return words(language())[key].format(**{name: plain(value) for name, value in values.items()})


def t_plainly(key: str, **values: Any) -> str:
    """The same for places that show plain text: a cell, an option of a list, a chart."""
    return words(language())[key].format(**values)


def say(text: Text | dict[str, Any]) -> str:
    """A sentence from the core in this session's language, safe to show as markdown."""
    parts = say_plainly(text).split("`")
    if len(parts) % 2 == 0:  # a lone backtick
        return plain("`".join(parts))
    # Between backticks a command is shown as it is: code can neither load nor do anything.
    return "".join(f"`{part}`" if index % 2 and part else plain(part) for index, part in enumerate(parts))


def say_plainly(text: Text | dict[str, Any]) -> str:
    """The same for places that show plain text, such as a table cell or a widget's value."""
    return (Text.from_json(text) if isinstance(text, dict) else text).to(language())


def plain(value: Any) -> str:
    """Text that a user, a model or a file wrote, so that markdown shows it and does nothing with it."""
    return _REWRITTEN.sub("\u2060", value).translate(_MARKDOWN) if isinstance(value, str) else str(value)


def explain(error: StudioError) -> str:
    """Problem and way out of an error, as markdown."""
    return f"{say(error.problem)}\n\n{say(error.hint)}"
