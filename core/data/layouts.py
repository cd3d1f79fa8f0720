"""Layouts that are asked for by name: the map functions of XTuner, and the common layouts that are otherwise recognised.

Each reader gives what XTuner's function of that name gives, in our form of a row, with three differences: no line break is added for
an empty input, a `###` inside an answer of oasst1 stays, and results of tools stay in a conversation. Where a function of XTuner puts
a system text before every row, a text of the same meaning, in our own words, is put there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from core.data.conversations import Body, Converted, Named, document, marked_turns, moss, pair, preference, recognise, system_of
from core.data.turns import Message, Unusable, parsed_cell, read_turns, text_of
from core.errors import StudioError
from core.words import Text

Reader = Callable[[Named, Converted], Body]
_SYSTEM = {
    "arxiv": "You write titles for scientific papers. Give a good title for the paper with this abstract.",
    "coder": "You are a professional programmer. Write the code that is described.",
    "colorist": "You are a professional colour designer. Name the colour that is described.",
    "lawyer": "你是一名专业的中国律师，请根据用户的问题给出准确、有依据的回答。",
    "medical": "你是一名医生，请根据患者的描述回答医学问题。",
    "sql": "You are an expert in SQL. Write the query that answers the question for these tables.",
}
_IMAGE = "<image>"


def _field(named: Named, name: str, done: Converted) -> str:
    """The text of a field that the layout needs."""
    if name not in named:
        raise Unusable(Text("it has no field {field}", field=name))
    return text_of(named[name], name, done.repairs)


def _pair_of(question: str, answer: str, system: str | None = None, more: str | None = None) -> Reader:
    """A reader of one question and one answer, with a fixed system text; `more` is a field below the question."""

    def read(named: Named, done: Converted) -> Body:
        asked, reply = _field(named, question, done), _field(named, answer, done)
        below = text_of(named.get(more), more, done.repairs) if more else ""
        if reply.strip() == "<nooutput>":
            raise Unusable(Text("its field {field} is empty", field=answer))
        text = f"{asked}\n{below}" if below.strip() else asked
        for name, value in ((question, text), (answer, reply)):
            if not value.strip():
                raise Unusable(Text("its field {field} is empty", field=name))
        opening: list[Message] = [{"role": "system", "content": _SYSTEM[system]}] if system else system_of(named, done)
        return {"messages": [*opening, {"role": "user", "content": text}, {"role": "assistant", "content": reply}]}

    return read


def _sql(named: Named, done: Converted) -> Body:
    asked = f"{_field(named, 'context', done)}\n{_field(named, 'question', done)}"
    return {"messages": [{"role": "system", "content": _SYSTEM["sql"]}, {"role": "user", "content": asked},
                         {"role": "assistant", "content": _field(named, "answer", done)}]}


def _colors(named: Named, done: Converted) -> Body:
    described = _field(named, "description", done).partition(":")[2].strip()
    return {"messages": [{"role": "system", "content": _SYSTEM["colorist"]}, {"role": "user", "content": described},
                         {"role": "assistant", "content": _field(named, "color", done)}]}


def _list_in(key: str) -> Reader:
    def read(named: Named, done: Converted) -> Body:
        if key not in named:
            raise Unusable(Text("it has no field {field}", field=key))
        return {"messages": system_of(named, done) + read_turns(named[key], key, done.repairs)}

    return read


def _oasst1(named: Named, done: Converted) -> Body:
    return {"messages": marked_turns(_field(named, "text", done), done.repairs)}


def _pretrain(named: Named, done: Converted) -> Body:
    body = document({"text": _field(named, "text", done)}, "text", done)
    return body if "text" in body else {"text": named["text"]}


def _llava(named: Named, done: Converted) -> Body:
    """The texts beside an image. Images are not trained here, so a row that needs one is refused."""
    if named.get("image"):
        raise Unusable(Text("it belongs to an image, and images are not trained here"))
    return _list_in("conversations")(named, done)


def _llava_image_only(named: Named, done: Converted) -> Body:
    """Rows that have an image, asked by nothing but that image: none of them can be trained on text alone."""
    if named.get("image"):
        raise Unusable(Text("it belongs to an image, and images are not trained here"))
    messages = _list_in("conversations")(named, done)["messages"]
    return {"messages": [{**message, "content": message["content"].replace(_IMAGE, "").strip()} for message in messages]}


def _msagent_react(named: Named, done: Converted) -> Body:
    """ModelScope's agent conversations, with the steps of an answer as Thought, Action, Action Input, Response and Final Answer."""
    body = _list_in("conversations")(named, done)
    messages = [{**message, "content": _as_steps(message["content"])} if message["role"] == "assistant" else message
                for message in body["messages"]]
    return {"messages": messages}


def _as_steps(text: str) -> str:
    """An answer with `<|startofthink|>` ... `<|endofexec|>` marks, as ReAct text; one without marks is the final answer."""
    if "<|startofthink|>" not in text:
        return text
    steps = []
    for part in re.finditer(r"(?P<before>.*?)<\|startofthink\|>(?P<call>.*?)<\|endofthink\|>(?:\s*<\|startofexec\|>(?P<result>.*?)"
                            r"<\|endofexec\|>)?", text, re.DOTALL):
        call = parsed_cell(_unfenced(part["call"]))
        steps.append(f"Thought: {part['before'].strip()}" if part["before"].strip() else "")
        if isinstance(call, dict):
            steps += [f"Action: {call.get('api_name', call.get('name', ''))}", f"Action Input: {call.get('parameters', {})}"]
        else:
            steps.append(f"Action: {part['call'].strip()}")
        if part["result"]:
            steps.append(f"Response: {_unfenced(part['result'])}")
    rest = text[text.rfind("<|end"):].partition("|>")[2].strip()
    if rest:
        steps.append(f"Final Answer: {rest}")
    return "\n".join(step for step in steps if step)


def _unfenced(text: str) -> str:
    """Text without the fence of a code block around it."""
    return re.sub(r"^```\w*|```$", "", text.strip()).strip()


def _preference(named: Named, done: Converted) -> Body:
    for key in ("chosen", "rejected"):
        if key not in named:
            raise Unusable(Text("it has no field {field}", field=key))
    return preference(named, done)


def _question_and_answer(named: Named, done: Converted) -> Body:
    return {"messages": system_of(named, done) + pair(named, "question", "answer", done)}


LAYOUTS: dict[str, Reader] = {
    # by XTuner's names
    "alpaca": _pair_of("instruction", "output", more="input"),
    "alpaca_zh": _pair_of("instruction_zh", "output_zh", more="input_zh"),
    "arxiv": _pair_of("abstract", "title", "arxiv"),
    "code_alpaca": _pair_of("prompt", "completion", "coder"),
    "tiny_codes": _pair_of("prompt", "response", "coder"),
    "colors": _colors,
    "crime_kg_assitan": _pair_of("input", "output", "lawyer"),
    "law_reference": _pair_of("question", "answer", "lawyer"),
    "medical": _pair_of("instruction", "output", "medical", more="input"),
    "sql": _sql,
    "openorca": _pair_of("question", "response"),
    "stack_exchange": _pair_of("question", "response"),
    "default": _pair_of("input", "output"),
    "wizardlm": _list_in("conversations"),
    "oasst1": _oasst1,
    "openai": _list_in("messages"),
    "pretrain": _pretrain,
    "llava": _llava,
    "llava_image_only": _llava_image_only,
    "msagent_react": _msagent_react,
    "moss_sft": moss,
    "preference": _preference,
    "orpo_dpo_mix_40k": _preference,
    "intel_orca_dpo": _preference,
    # other common ones
    "sharegpt": _list_in("conversations"),
    "xtuner": _list_in("conversation"),
    "question_answer": _question_and_answer,
    "prompt_completion": _pair_of("prompt", "completion"),
}
_OTHER_NAMES = {"crime_kg_assitant": "crime_kg_assitan", "intel_orca": "intel_orca_dpo", "conversation": "xtuner"}
# Our field -> what an explicit mapping of columns may name.
FIELDS = ("question", "answer", "system", "input", "history", "messages", "text", "chosen", "rejected", "tools")


def reader_of(layout: str | None) -> Reader:
    """The reader of a layout by its name; `_map_fn` at its end is allowed. None recognises each record by itself.

    Raises:
        StudioError: no layout has this name.
    """
    if layout is None:
        return recognise
    name = layout.strip().lower().replace("-", "_").removesuffix("_map_fn")
    name = _OTHER_NAMES.get(name, name)
    if name not in LAYOUTS:
        raise StudioError("There is no layout called {layout}.", "Known: {known}. Leave it out to have each record recognised.",
                          layout=repr(layout), known=", ".join(LAYOUTS))
    read = LAYOUTS[name]

    def named_reader(named: dict[str, Any], done: Converted) -> Body:
        done.layout = name
        return read(named, done)

    return named_reader


def check_columns(columns: dict[str, str]) -> None:
    """Refuse a mapping that names no question, or a field that does not exist.

    Raises:
        StudioError: see above.
    """
    unknown = [name for name in columns if name not in FIELDS]
    if unknown:
        raise StudioError("A row has no field {field}.", "Map to one of: {fields}.", field=repr(unknown[0]), fields=", ".join(FIELDS))
    is_whole = "messages" in columns or "text" in columns or {"question", "answer"} <= columns.keys()
    if columns and not is_whole and not {"chosen", "rejected"} <= columns.keys():
        raise StudioError("The columns given make no row.", "Map question and answer, or messages, or text, or chosen and rejected.")
