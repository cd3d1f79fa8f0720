"""What a check of rows has found, and the views of a row that checks share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from core.data.wordings import normalised
from core.words import Text

Row = dict[str, Any]
Level = Literal["error", "warning", "note"]
EXAMPLES = 3  # named in a sentence


@dataclass(frozen=True)
class Finding:
    """One thing that will hurt.

    Attributes:
        code: its name, the same in every language: `duplicates`.
        level: `error` breaks the training or its result, `warning` may, `note` is worth knowing.
        text: what is there and what it does to the training.
        rows: the rows concerned, from 0; empty when the dataset as a whole is meant.
        fix: name of the fix, or None.
        examples: the texts concerned, such as the placeholders found.
    """

    code: str
    level: Level
    text: Text
    rows: tuple[int, ...] = ()
    fix: str | None = None
    examples: tuple[str, ...] = ()


def answers_of(row: Row) -> list[str]:
    """What is trained of a row, as text: the answers, or a document."""
    return [row["text"]] if "text" in row else [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def is_answered(message: dict[str, Any]) -> bool:
    """Whether an assistant's turn says or calls anything."""
    return bool(message["content"].strip() or message.get("tool_calls"))


def said_exactly(row: Row) -> str:
    """What tells rows apart."""
    if "text" in row:
        return row["text"]
    said = [[message["role"], message["content"], *message.get("tool_calls", ())] for message in row["messages"]]
    return json.dumps([said, row["rejected"]] if "rejected" in row else said, ensure_ascii=False)


def said_roughly(row: Row) -> str:
    """What tells rows apart when case, spaces and punctuation do not count; text without any letter counts as it is."""
    if "text" in row:
        return normalised(row["text"]) or row["text"]
    return "\n".join(f"{message['role']}:{normalised(message['content']) or message['content'] or said_exactly(row)}"
                     for message in row["messages"])


def percent(count: int, total: int) -> float:
    return round(100 * count / total, 1) if total else 0.0


def some(examples: Iterable[str]) -> str:
    """The first few, for a sentence."""
    return ", ".join(list(examples)[:EXAMPLES])
