"""One turn of a conversation in any usual spelling -> messages as they are kept: role, text, calls of tools.

A kept message is `{"role", "content"}` with role system, user, assistant or tool and a text as content. An assistant may have
`tool_calls`, each `{"type": "function", "function": {"name", "arguments"}}` with the arguments as an object where they are JSON.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from core.words import Text

Message = dict[str, Any]

ROLES = {
    "system": "system", "developer": "system", "系统": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "用户": "user", "问": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant",
    "chatbot": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant", "助手": "assistant", "答": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "function-response": "tool",
    "tool_response": "tool", "tool_result": "tool", "tool_results": "tool", "tool_output": "tool", "ipython": "tool",
}
_CALLS = {"function_call", "function-call", "tool_call", "tool_calls", "function_calls"}
_NAMES, _TEXTS = ("role", "from", "speaker"), ("content", "value", "parts", "text", "message")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Unusable(Exception):
    """Carries the reason why a record cannot be a row out of its depth."""

    def __init__(self, reason: Text) -> None:
        super().__init__(reason.template)
        self.reason = reason


def text_of(value: Any, field: str, repairs: list[Text]) -> str:
    """The text in a field: of a string, a number, or a list of text parts.

    Args:
        value: what stands there; nothing is the empty text.
        field: its name, for the reason.
        repairs: what had to be changed is added here.

    Raises:
        Unusable: it is something else.
    """
    if isinstance(value, str):
        if "\x00" in value:
            repairs.append(Text("zero bytes were removed"))
            value = value.replace("\x00", "")
        if not value.isascii() and _SURROGATE.search(value):
            repairs.append(Text("half a character was removed"))
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")  # joins halves that belong together
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (int, float)):
        repairs.append(Text("a number was taken as text"))
        return str(value)
    if isinstance(value, list):
        return "\n".join(_part(part, field, repairs) for part in value)
    raise Unusable(Text("its field {field} is not text", field=field))


def _part(part: Any, field: str, repairs: list[Text]) -> str:
    is_text = isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text", "output_text")
    if is_text and isinstance(part.get("text"), str):
        return text_of(part["text"], field, repairs)
    if isinstance(part, Mapping):
        raise Unusable(Text("its field {field} holds an image or another thing that is not text", field=field))
    raise Unusable(Text("its field {field} is a list where text belongs", field=field))


def parsed_cell(value: Any) -> Any:
    """What a cell of a table holds: lists and objects stand there as JSON, or as Python writes them. Else the value itself."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return value


def read_turns(turns: Any, field: str, repairs: list[Text]) -> list[Message]:
    """All messages of a list of turns.

    Raises:
        Unusable: it is no such list, or one of its turns cannot be read.
    """
    turns = parsed_cell(turns)
    if isinstance(turns, str):
        raise Unusable(Text("its list of turns {field} cannot be read", field=field))
    if isinstance(turns, Mapping):
        turns = [turns]
    if not isinstance(turns, list) or not turns:
        raise Unusable(Text("its list of turns {field} is empty", field=field))
    if all(isinstance(turn, str) for turn in turns):  # question and answer in turn, as in LIMA and UltraChat
        return [{"role": ("user", "assistant")[place % 2], "content": text_of(turn, f"{field}.{place + 1}", repairs)}
                for place, turn in enumerate(turns)]
    return [message for place, turn in enumerate(turns, 1) for message in _turn(turn, f"{field}.{place}", repairs)]


def _turn(turn: Any, where: str, repairs: list[Text]) -> list[Message]:
    if not isinstance(turn, Mapping):
        raise Unusable(Text("turn {turn} is not a record with role and text", turn=where))
    role = next((turn[name] for name in _NAMES if name in turn), None)
    if role is None and "output" in turn:  # XTuner: a question and its answer in one
        return _exchange(turn, where, repairs)
    name = role.strip().lower() if isinstance(role, str) else ""
    field, value = next(((f"{where}.{name}", turn[name]) for name in _TEXTS if turn.get(name) is not None), (where, None))
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None)
    if name in _CALLS:
        return _spoken_calls(value, field, repairs)
    if name not in ROLES:
        raise Unusable(Text("turn {turn} has the role {role}, which is not known", turn=where, role=repr(role)))
    message: Message = {"role": ROLES[name], "content": _content(value, field, repairs, ROLES[name])}
    if calls:
        message["tool_calls"] = [_call(call, where) for call in _listed(calls)]
    if message["role"] == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    if turn.get("cut") is True:
        message["cut"] = True
    # XTuner's `loss`, OpenAI's `weight`: read, not trained. Nothing, as Arrow fills it in, is no "no".
    if turn.get("train") is False or turn.get("loss") is False or (turn.get("weight") == 0 and message["role"] == "assistant"):
        message["train"] = False
    return [message]


def _content(value: Any, field: str, repairs: list[Text], role: str) -> str:
    if role == "tool" and isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=str)  # results are often objects
    return text_of(value, field, repairs)


def _exchange(turn: Mapping[str, Any], where: str, repairs: list[Text]) -> list[Message]:
    messages: list[Message] = []
    system = turn.get("system")
    if isinstance(system, str) and system.strip():
        messages.append({"role": "system", "content": system})
    asked = text_of(turn.get("input"), f"{where}.input", repairs)
    if asked.strip():
        messages.append({"role": "user", "content": asked})
    answer: Message = {"role": "assistant", "content": text_of(turn["output"], f"{where}.output", repairs)}
    if turn.get("need_eos_token") is False:
        answer["cut"] = True
    if turn.get("output_with_loss") is False:
        answer["train"] = False
    return [*messages, answer]


def _spoken_calls(value: Any, field: str, repairs: list[Text]) -> list[Message]:
    """ShareGPT writes a call as a turn of its own, with JSON as its text."""
    calls = parsed_cell(value)
    try:
        return [{"role": "assistant", "content": "", "tool_calls": [_call(call, field) for call in _listed(calls)]}]
    except Unusable:
        repairs.append(Text("a call of a tool that is not JSON was kept as text"))
        return [{"role": "assistant", "content": text_of(value, field, repairs)}]


def _listed(calls: Any) -> list[Any]:
    calls = parsed_cell(calls)
    return calls if isinstance(calls, list) else [calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(function, str) and isinstance(call, Mapping):
        function = {**call, "name": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unusable(Text("turn {turn} calls a tool without a name", turn=where))
    arguments = function.get("arguments", function.get("parameters"))
    kept = {"type": "function", "function": {"name": function["name"], "arguments": _arguments(arguments)}}
    return {"id": call["id"], **kept} if isinstance(call.get("id"), str) else kept


def _arguments(arguments: Any) -> Any:
    parsed = parsed_cell(arguments)
    return {} if parsed is None or parsed == "" else parsed


def read_tools(value: Any) -> list[dict[str, Any]]:
    """The JSON schemas of tools, each as `{"type": "function", "function": {...}}`.

    Raises:
        Unusable: they cannot be read.
    """
    tools = parsed_cell(value)
    if tools is None or tools == "" or tools == []:
        return []
    found = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, Mapping) for tool in found):
        raise Unusable(Text("its list of tools cannot be read"))
    return [dict(tool) if "function" in tool or "name" not in tool else {"type": "function", "function": dict(tool)} for tool in found]
