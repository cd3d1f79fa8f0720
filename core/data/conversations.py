"""One record of any usual layout -> the body of a row, or the reason why it cannot be one.

A layout is recognised by the names of its fields, never by a part of a name and never by the name of the file. The body of a row is
`{"messages"}` or, for a plain document, `{"text"}`; with `tools` where the record has them, and for a pair of answers with `rejected`,
the messages of the one that was not preferred.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.data.turns import Message, Unusable, parsed_cell, read_tools, read_turns, text_of
from core.words import Text

# (question, answer) as columns are called; the first pair that a record has counts.
PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("instruction", "answer"), ("instruction", "completion"),
    ("question", "answer"), ("question", "response"), ("question", "output"), ("prompt", "response"), ("prompt", "completion"),
    ("prompt", "answer"), ("prompt", "output"), ("query", "response"), ("query", "answer"), ("query", "answers"), ("q", "a"),
    ("input", "output"), ("input", "target"), ("input", "response"), ("user", "assistant"), ("user", "bot"), ("human", "assistant"),
    ("human", "bot"), ("ask", "answer"), ("content", "summary"), ("instruction_zh", "output_zh"),
    ("问题", "回答"), ("问题", "答案"), ("提问", "回答"), ("输入", "输出"), ("指令", "输出"),
)
# Fields that hold a list of turns, and what the layout is called.
LISTS = {"messages": "OpenAI messages", "conversations": "ShareGPT", "conversation": "XTuner", "contents": "Gemini contents",
         "dialogue": "dialogue", "dialog": "dialogue", "data": "list of texts"}
_CHOSEN = (("chosen", "rejected"), ("response_j", "response_k"), ("preferred_output", "non_preferred_output"))
_ASKED = ("prompt", "question", "instruction", "query", "input")
# Added to the question on a line of its own: Alpaca's input, Dolly's context.
_CONTEXT = ("input", "context", "input_zh")
_DOCUMENTS = ("text", "content", "document")
_SYSTEMS = ("system", "system_prompt", "systeminstruction", "meta_instruction", "系统")
# `### Human:` of oasst1, `Human:` of hh-rlhf, `USER:` of glaive; the mark begins a line, or is a heading.
_SPEAKER = re.compile(r"(?:^|(?<=\S)\s*)###\s*(Human|User|Assistant|System)\s*:"
                      r"|^[^\S\n]*(Human|Assistant|USER|ASSISTANT|SYSTEM)\s*:", re.MULTILINE)
Named = Mapping[str, Any]
Body = dict[str, Any]


@dataclass
class Converted:
    """What became of one record.

    Attributes:
        layout: the layout it was recognised as.
        body: `messages` or `text`, and what belongs to it; empty when the record was rejected.
        repairs: what was changed to make it usable.
        reason: why it was rejected, else None.
    """

    layout: str = ""
    body: Body = field(default_factory=dict)
    repairs: list[Text] = field(default_factory=list)
    reason: Text | None = None


def convert(record: Any, read: Callable[[Named, Converted], Body] | None = None, columns: Mapping[str, str] | None = None) -> Converted:
    """Recognise one record and turn it into the body of a row.

    Args:
        record: as the file holds it.
        read: the reader of a layout that was named; None recognises the layout.
        columns: what stands for which field, as in `{"question": "frage"}`; wins over every recognition.
    """
    done = Converted()
    try:
        named = _named(record, columns)
        body = (read or recognise)(named, done)
        done.body = {**tidy(body, done.repairs), **({"tools": tools} if (tools := _tools(named)) and "text" not in body else {})}
    except Unusable as unusable:
        done.body, done.reason = {}, unusable.reason
    return done


def known_columns(columns: list[str]) -> bool:
    """Whether a table with these column names holds conversations or documents."""
    names = {column.strip().lower() for column in columns}
    return (any({question, answer} <= names for question, answer in PAIRS) or not names.isdisjoint(LISTS) or "text" in names
            or any({chosen, rejected} <= names for chosen, rejected in _CHOSEN))


def _named(record: Any, columns: Mapping[str, str] | None) -> dict[str, Any]:
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, Mapping):
        raise Unusable(Text("it is a single value, not a record with names"))
    if not columns:
        return {str(key).strip().lower(): value for key, value in record.items()}
    missing = [column for column in columns.values() if column not in record]
    if missing:
        raise Unusable(Text("it has no field {field}", field=missing[0]))
    return {name: record[column] for name, column in columns.items()}


def recognise(named: Named, done: Converted) -> Body:
    """Read a record by the layout that its fields tell.

    Raises:
        Unusable: none of its fields is known, or what they hold cannot be used.
    """
    if isinstance(named.get("prompt"), Mapping) and "replies" in named["prompt"]:
        done.layout = "tree"
        return {"messages": _best_branch(named["prompt"], done)}
    for better, worse in _CHOSEN:
        if named.get(better) and worse in named:
            done.layout = "preference"
            return preference(named, done, better, worse)
    for key, layout in LISTS.items():
        if named.get(key) is not None and (key != "data" or isinstance(named[key], list)):
            done.layout = layout
            body: Body = {"messages": system_of(named, done) + read_turns(named[key], key, done.repairs)}
            if key == "messages" and isinstance(named.get("rejected"), list):  # a row of ours, come back
                body["rejected"] = read_turns(named["rejected"], "rejected", done.repairs)
            return body
    for question, answer in PAIRS:
        if question in named and answer in named:
            done.layout = "Alpaca" if question == "instruction" and answer == "output" else f"{question}/{answer}"
            return {"messages": system_of(named, done) + pair(named, question, answer, done)}
    if isinstance(named.get("chat"), str):
        done.layout = "marked text"
        return {"messages": system_of(named, done) + marked_turns(named["chat"], done.repairs)}
    if isinstance(named.get("chat"), Mapping):
        done.layout = "MOSS"
        return moss(named, done)
    if "parent_id" in named and "message_id" in named:
        raise Unusable(Text("it is one message of a tree, not a conversation; choose a version with whole conversations"))
    for key in _DOCUMENTS:
        if key in named:
            return document(named, key, done)
    raise Unusable(Text("none of its fields is known: {fields}", fields=", ".join(list(named)[:8])[:200] or "-"))


def _best_branch(message: Mapping[str, Any] | None, done: Converted) -> list[Message]:
    """Of a tree of replies (Open Assistant) the conversation that follows the reply ranked best each time; unranked ones come last."""
    turns = []
    while isinstance(message, Mapping):
        turns.append({"role": message.get("role"), "content": message.get("text")})
        replies = [reply for reply in message.get("replies") or [] if isinstance(reply, Mapping)]
        message = min(replies, key=lambda reply: reply["rank"] if isinstance(reply.get("rank"), int) else math.inf, default=None)
    return read_turns(turns, "prompt", done.repairs)


def system_of(named: Named, done: Converted) -> list[Message]:
    """The system text of a record, as a message; none when it has none."""
    value = next((named[key] for key in _SYSTEMS if named.get(key)), None)
    if isinstance(value, Mapping):  # Gemini: {"parts": [{"text"}]}
        value = value.get("parts")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    text = text_of(value, "system", done.repairs)
    return [{"role": "system", "content": text.removeprefix("SYSTEM: ")}] if text.strip() else []


def _tools(named: Named) -> list[dict[str, Any]]:
    value = named.get("tools") or named.get("functions")
    return read_tools(value) if value else []


def pair(named: Named, question: str, answer: str, done: Converted) -> list[Message]:
    """A question and an answer, each a text or a list of turns, with what was said before in `history`."""
    asked, answered = parsed_cell(named[question]), parsed_cell(named[answer])
    if _are_turns(asked) or _are_turns(answered):  # TRL: prompt and completion are lists of turns
        return _side(asked, question, "user", done) + _side(answered, answer, "assistant", done)
    if named.get("label") is False:
        raise Unusable(Text("its answer is marked as a bad one"))
    if answer == "answers" and isinstance(answered, list):  # xLAM: the answer is a list of calls
        message = read_turns([{"role": "assistant", "tool_calls": answered}], answer, done.repairs)
        return [{"role": "user", "content": text_of(asked, question, done.repairs)}, *message]
    text = text_of(named[question], question, done.repairs)
    for key in _CONTEXT:
        if key not in (question, answer) and (more := text_of(named.get(key), key, done.repairs)).strip():
            text = f"{text}\n{more}" if text.strip() else more
    reply = text_of(named[answer], answer, done.repairs)
    for name, value in ((question, text), (answer, reply)):
        if not value.strip():
            raise Unusable(Text("its field {field} is empty", field=name))
    return [*_history(named, done), {"role": "user", "content": text}, {"role": "assistant", "content": reply}]


def _are_turns(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)


def _side(value: Any, name: str, role: str, done: Converted) -> list[Message]:
    return read_turns(value, name, done.repairs) if isinstance(value, list) else [
        {"role": role, "content": text_of(value, name, done.repairs)}]


def _history(named: Named, done: Converted) -> list[Message]:
    earlier = parsed_cell(named.get("history"))
    if not earlier or (isinstance(earlier, float) and math.isnan(earlier)):
        return []
    if _are_turns(earlier):
        return read_turns(earlier, "history", done.repairs)
    if not isinstance(earlier, list) or not all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in earlier):
        raise Unusable(Text("its history is not a list of questions with answers"))
    return [{"role": role, "content": text_of(text, f"history.{number}", done.repairs)}
            for number, turn in enumerate(earlier, 1) for role, text in zip(("user", "assistant"), turn, strict=True)]


def preference(named: Named, done: Converted, better: str = "chosen", worse: str = "rejected") -> Body:
    """A pair of answers: the preferred one in the conversation, the other beside it."""
    good, bad = (_whole_or_answer(named[key], key, done) for key in (better, worse))
    if good[0]["role"] != "assistant":  # both sides hold the whole conversation
        shared = next((place for place, (one, other) in enumerate(zip(good, bad, strict=False)) if one != other), min(len(good), len(bad)))
        messages, bad = (good if good[0]["role"] == "system" else system_of(named, done) + good), bad[shared:]
    else:
        messages = system_of(named, done) + _question(named, done) + good
    body: Body = {"messages": messages}
    spoken = [message for message in bad if message["role"] == "assistant" and (message["content"].strip() or message.get("tool_calls"))]
    if not spoken:
        done.repairs.append(Text("it has one answer only, or the same one twice; it was kept as an ordinary row"))
        return body
    if bad == messages[-len(bad):]:
        done.repairs.append(Text("it has one answer only, or the same one twice; it was kept as an ordinary row"))
        return body
    return {**body, "rejected": bad}


def _whole_or_answer(value: Any, name: str, done: Converted) -> list[Message]:
    value = parsed_cell(value)
    if isinstance(value, (list, Mapping)) and value:
        return read_turns(value, name, done.repairs)
    text = text_of(value, name, done.repairs)
    if _SPEAKER.match(text.lstrip("\n")):
        return marked_turns(text, done.repairs)
    return [{"role": "assistant", "content": text}]


def _question(named: Named, done: Converted) -> list[Message]:
    for key in LISTS:
        if named.get(key) is not None:
            return read_turns(named[key], key, done.repairs)
    key = next((key for key in _ASKED if named.get(key)), None)
    if key is None:
        raise Unusable(Text("it has no question"))
    asked = parsed_cell(named[key])
    if isinstance(asked, Mapping):  # OpenAI: {"messages": [...]}
        asked = asked.get("messages")
    if isinstance(asked, list):
        return read_turns(asked, key, done.repairs)
    text = text_of(asked, key, done.repairs)
    more = text_of(named.get("input"), "input", done.repairs) if key != "input" else ""
    return [{"role": "user", "content": f"{text}\n{more}" if more.strip() else text}]


def marked_turns(text: str, repairs: list[Text]) -> list[Message]:
    """The turns of a text with `### Human:` and `### Assistant:`, or the like, before each.

    Only a mark that names a speaker divides, so a `###` inside an answer stays.
    """
    marks = list(_SPEAKER.finditer(text))
    messages = []
    for place, mark in enumerate(marks):
        said = text[mark.end():marks[place + 1].start() if place + 1 < len(marks) else len(text)]
        role = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}[(mark[1] or mark[2]).lower()]
        messages.append({"role": role, "content": text_of(said.replace("<|endoftext|>", "").strip(), "text", repairs)})
    if not messages:
        raise Unusable(Text("none of its fields is known: {fields}", fields="chat"))
    return messages


def moss(named: Named, done: Converted) -> Body:
    """MOSS: `chat` with `turn_1`, `turn_2`, ... of `Human`, `MOSS` and, where it used a tool, `Commands` and `Tool Responses`."""
    chat = parsed_cell(named.get("chat"))
    if not isinstance(chat, Mapping):
        raise Unusable(Text("its list of turns {field} cannot be read", field="chat"))
    messages = system_of(named, done)
    for number in range(1, len(chat) + 1):
        turn = chat.get(f"turn_{number}")
        if not isinstance(turn, Mapping):
            raise Unusable(Text("turn {turn} is not a record with role and text", turn=f"chat.turn_{number}"))
        said = {key: re.sub(r"<\|[^|]{1,20}\|>:?|<eo\w>", "", text_of(turn.get(key), f"chat.turn_{number}.{key}", done.repairs)).strip()
                for key in ("Human", "Commands", "Tool Responses", "MOSS")}
        messages.append({"role": "user", "content": said["Human"]})
        if said["Commands"] not in ("", "None"):
            messages += [{"role": "assistant", "content": said["Commands"]}, {"role": "tool", "content": said["Tool Responses"]}]
        messages.append({"role": "assistant", "content": said["MOSS"]})
    return {"messages": messages}


def document(named: Named, key: str, done: Converted) -> Body:
    """A plain text: a conversation where its speakers are marked, else a document to go on pre-training with."""
    text = text_of(named[key], key, done.repairs)
    if re.search(r"###\s*(Human|User)\s*:", text) and re.search(r"###\s*Assistant\s*:", text):
        done.layout = "oasst1"
        return {"messages": marked_turns(text, done.repairs)}
    done.layout = "documents"
    if not text.strip():
        raise Unusable(Text("its field {field} is empty", field=key))
    return {"text": text}


def tidy(body: Body, repairs: list[Text]) -> Body:
    """Refuse what cannot be trained, join what belongs together, drop what is not needed; every change is named in `repairs`.

    Raises:
        Unusable: see the reason.
    """
    if "text" in body:
        return body
    messages = _joined(body["messages"], repairs)
    if any(message["role"] == "system" for message in messages[1:]):
        raise Unusable(Text("a system text stands in the middle of it"))
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise Unusable(Text("it has no answer"))
    if "user" not in roles:
        raise Unusable(Text("it has no question"))
    first = roles.index("user")
    if any(role == "assistant" for role in roles[:first]):
        repairs.append(Text("an answer before the first question was left out"))
        messages = [message for message in messages[:first] if message["role"] == "system"] + messages[first:]
    if messages[-1]["role"] != "assistant":
        while messages[-1]["role"] != "assistant":
            messages = messages[:-1]
            if not messages:
                raise Unusable(Text("it has no answer"))
        repairs.append(Text("a last question without an answer was left out"))
    for number, message in enumerate(messages, 1):
        if message["role"] != "tool" and not message["content"].strip() and not message.get("tool_calls"):
            raise Unusable(Text("the answer in turn {number} is empty", number=number) if message["role"] == "assistant"
                           else Text("the question in turn {number} is empty", number=number))
    return {**body, "messages": messages}


def _joined(messages: list[Message], repairs: list[Text]) -> list[Message]:
    """Two turns of the same speaker in a row become one, as templates want the speakers in turn. Results of tools stay apart."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        is_plain = last is not None and last["role"] == message["role"] != "tool" and not last.get("tool_calls") \
            and not message.get("tool_calls")
        if last is None or not is_plain or last.get("train") != message.get("train"):
            joined.append(message)
            continue
        repairs.append(Text("two turns of the same speaker in a row were joined"))
        content = "\n".join(text for text in (last["content"], message["content"]) if text.strip())
        joined[-1] = {**last, **message, "content": content}
    return joined
