"""One record of any usual layout -> the messages of a row, or the reason why it cannot be one.

Known layouts, recognised by their keys and never by a part of a key: OpenAI `messages`, ShareGPT `conversations`, XTuner
`conversation`, Alpaca `instruction`/`input`/`output`, and a question with an answer under the names people give them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.words import Text

Message = dict[str, Any]

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "用户": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "助手": "assistant",
}
_TOOL_ROLES = {"tool", "tools", "function", "function_call", "function_response", "observation", "tool_call", "tool_calls"}
# (question, answer) as columns are called; the first pair that a record has counts.
PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("question", "answer"), ("prompt", "response"), ("prompt", "completion"),
    ("prompt", "answer"), ("prompt", "chosen"), ("query", "response"), ("query", "answer"), ("q", "a"), ("input", "output"),
    ("user", "assistant"), ("问题", "回答"), ("问题", "答案"), ("提问", "回答"), ("输入", "输出"),
)
_LISTS = (("messages", "OpenAI messages"), ("conversations", "ShareGPT"), ("conversation", "XTuner"))
# Added to the question on a line of its own: Alpaca's input, Dolly's context.
_CONTEXT = ("input", "context")


@dataclass
class Converted:
    """What became of one record.

    Attributes:
        messages: the turns; empty when the record was rejected.
        layout: the layout it was recognised as.
        repairs: what was changed to make it usable.
        reason: why it was rejected, else None.
    """

    layout: str = ""
    messages: list[Message] = field(default_factory=list)
    repairs: list[Text] = field(default_factory=list)
    reason: Text | None = None


class _Rejected(Exception):
    """Carries the reason out of the depth of a record."""

    def __init__(self, reason: Text) -> None:
        super().__init__(str(reason))
        self.reason = reason


def convert(record: Any) -> Converted:
    """Recognise one record and turn it into messages."""
    done = Converted()
    try:
        done.messages = _tidy(_read(record, done), done)
    except _Rejected as rejected:
        done.messages, done.reason = [], rejected.reason
    return done


def known_columns(columns: list[str]) -> bool:
    """Whether a table with these column names holds conversations."""
    names = {column.strip().lower() for column in columns}
    return any({question, answer} <= names for question, answer in PAIRS) or any(name in names for name, _ in _LISTS)


def _read(record: Any, done: Converted) -> list[Message]:
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, Mapping):
        raise _Rejected(Text("it is a single value, not a record with names"))
    named = {str(key).strip().lower(): value for key, value in record.items()}
    for key, layout in _LISTS:
        if key in named:
            done.layout = layout
            return _system(named) + _listed(named, key, done)
    for question, answer in PAIRS:
        if question in named and answer in named:
            done.layout = "Alpaca" if question == "instruction" else f"{question}/{answer}"
            return _system(named) + _pair(named, question, answer, done)
    if "text" in named:
        raise _Rejected(Text("it is running text without a question and an answer"))
    raise _Rejected(Text("none of its fields is known: {fields}", fields=", ".join(list(named)[:8]) or "-"))


def _system(named: Mapping[str, Any]) -> list[Message]:
    system = named.get("system") or named.get("system_prompt")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []


def _listed(named: Mapping[str, Any], key: str, done: Converted) -> list[Message]:
    turns = named[key]
    if isinstance(turns, str):  # a cell of a table
        try:
            turns = json.loads(turns)
        except ValueError:
            raise _Rejected(Text("its list of turns cannot be read")) from None
    if not isinstance(turns, list) or not turns:
        raise _Rejected(Text("its list of turns is empty"))
    messages = [message for turn in turns for message in _turn(turn, done)]
    if "chosen" in named:
        done.repairs.append(Text("of a pair of answers the preferred one was taken"))
        messages += _turn(named["chosen"], done)
    return messages


def _turn(turn: Any, done: Converted) -> list[Message]:
    if not isinstance(turn, Mapping):
        raise _Rejected(Text("one of its turns is not a record with role and text"))
    if "output" in turn:  # XTuner: a question and its answer in one
        return _system(turn) + _exchange(turn.get("input"), turn["output"], done)
    name = str(turn.get("role", turn.get("from", ""))).strip().lower()
    if name in _TOOL_ROLES or turn.get("tool_calls"):
        raise _Rejected(Text("it calls tools, which are not trained here"))
    if name not in ROLES:
        raise _Rejected(Text("one of its turns has the role {role}, which is not known", role=repr(name)))
    message: Message = {"role": ROLES[name], "content": _text(turn.get("content", turn.get("value")), done)}
    return [message | {"cut": True}] if turn.get("cut") is True else [message]


def _pair(named: Mapping[str, Any], question: str, answer: str, done: Converted) -> list[Message]:
    if isinstance(named[question], list):  # TRL: prompt and completion are lists of turns
        return [message for key in (question, answer) for turn in _as_list(named[key]) for message in _turn(turn, done)]
    if answer == "chosen":
        done.repairs.append(Text("of a pair of answers the preferred one was taken"))
    asked = _text(named[question], done)
    for key in _CONTEXT:
        if key not in (question, answer) and (more := _text(named.get(key), done)).strip():
            asked = f"{asked}\n{more}" if asked.strip() else more
    messages = []
    for earlier in _as_list(named.get("history")):
        if not isinstance(earlier, (list, tuple)) or len(earlier) != 2:
            raise _Rejected(Text("its history is not a list of questions with answers"))
        messages += _exchange(earlier[0], earlier[1], done)
    return messages + _exchange(asked, named[answer], done)


def _exchange(question: Any, answer: Any, done: Converted) -> list[Message]:
    return [{"role": "user", "content": _text(question, done)}, {"role": "assistant", "content": _text(answer, done)}]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _text(value: Any, done: Converted) -> str:
    """The text of one turn."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise _Rejected(Text("one of its turns holds an image or another thing that is not text"))
        value = "\n".join(parts)
    if isinstance(value, (int, float)):
        done.repairs.append(Text("a number was taken as text"))
        value = str(value)
    if not isinstance(value, str):
        raise _Rejected(Text("one of its turns is not text"))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        done.repairs.append(Text("half a character was removed"))
        value = value.encode("utf-8", "ignore").decode("utf-8")
    return value


def _tidy(messages: list[Message], done: Converted) -> list[Message]:
    """Refuse what cannot be trained, drop what is not needed."""
    if any(message["role"] == "system" for message in messages[1:]):
        raise _Rejected(Text("a system text stands in the middle of it"))
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    if not any(message["role"] == "assistant" for message in messages):
        raise _Rejected(Text("it has no answer"))
    if not any(message["role"] == "user" for message in messages):
        raise _Rejected(Text("it has no question"))
    if messages[-1]["role"] != "assistant":
        while messages[-1]["role"] != "assistant":
            messages = messages[:-1]
        done.repairs.append(Text("a last question without an answer was left out"))
    for message in messages:
        if not message["content"].strip():
            raise _Rejected(Text("an answer in it is empty") if message["role"] == "assistant" else Text("a question in it is empty"))
    return messages
