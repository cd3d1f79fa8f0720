"""Rows -> files in the layouts that other tools read: OpenAI, ShareGPT, Alpaca, XTuner, or our own rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from core.data.library import GENERAL
from core.errors import StudioError
from core.workspace import explain_full_disk

Row = dict[str, Any]
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def export_rows(rows: Iterable[Row], path: str | Path, layout: str = "rows") -> int:
    """Write rows to a new file: `.jsonl`, `.json`, or `.csv` with question and answer.

    Args:
        rows: of a dataset.
        path: of the new file; its ending says its form.
        layout: `rows` keeps everything; `openai`, `sharegpt`, `alpaca` and `xtuner` are what other tools read.

    Returns:
        How many rows were written.

    Raises:
        StudioError: the file exists, its ending or the layout is unknown, or a row has no place in that layout.
    """
    target = Path(path).expanduser()
    if layout not in EXPORTS:
        raise StudioError("There is no layout {layout} to export.", "Known: {known}.", layout=repr(layout), known=", ".join(EXPORTS))
    writers = {".jsonl": _as_lines, ".json": _as_list, ".csv": _as_table}
    if target.suffix.lower() not in writers:
        raise StudioError("The ending of {path} is not known.", "Use .jsonl, .json or .csv.", path=target)
    if target.exists():
        raise StudioError("The file {path} exists already.", "Name a new file; nothing is overwritten.", path=target)
    count = 0

    def records() -> Iterator[Row]:
        nonlocal count
        for count, row in enumerate(rows, 1):
            yield row if target.suffix.lower() == ".csv" else EXPORTS[layout](row, count)

    try:
        with explain_full_disk(target), target.open("x", encoding="utf-8", newline="") as stream:
            for piece in writers[target.suffix.lower()](records()):
                stream.write(piece)
    except StudioError:
        target.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise StudioError("The file {path} cannot be written: {reason}.", "Name a file in a folder you may write to.",
                          path=target, reason=error.strerror or type(error).__name__) from error
    return count


def _as_lines(records: Iterator[Row]) -> Iterator[str]:
    for record in records:
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _as_list(records: Iterator[Row]) -> Iterator[str]:
    yield "["
    for number, record in enumerate(records):
        yield (",\n" if number else "\n") + json.dumps(record, ensure_ascii=False, indent=1)
    yield "\n]\n"


def _as_table(rows: Iterator[Row]) -> Iterator[str]:
    yield "question,answer,group,lang\r\n"
    for number, row in enumerate(rows, 1):
        messages = row.get("messages", [])
        if [message["role"] for message in messages] != ["user", "assistant"] or messages[1].get("tool_calls"):
            raise StudioError("Row {number} is more than one question and one answer; a table has no place for it.",
                              "Export to .jsonl instead.", number=number)
        line = io.StringIO(newline="")
        csv.writer(line).writerow([*(message["content"] for message in messages), row.get("group", GENERAL), row.get("lang", "en")])
        yield line.getvalue()


def _own(row: Row, number: int) -> Row:
    return row


def _openai(row: Row, number: int) -> Row:
    """OpenAI: arguments of calls are JSON text, and a turn that is not trained has weight 0."""
    if "text" in row:
        return {"text": row["text"]}
    record: Row = {"messages": [_openai_message(message) for message in row["messages"]], **_tools(row)}
    if "rejected" in row:
        answers = len(row["messages"]) - next(place for place in range(len(row["messages"]), 0, -1)
                                              if row["messages"][place - 1]["role"] == "user")
        shared, chosen = row["messages"][:-answers], row["messages"][-answers:]
        return {"prompt": [_openai_message(message) for message in shared], "chosen": [_openai_message(message) for message in chosen],
                "rejected": [_openai_message(message) for message in row["rejected"]], **_tools(row)}
    return record


def _openai_message(message: Row) -> Row:
    kept = {key: message[key] for key in ("role", "content", "name", "tool_call_id") if key in message}
    if message.get("tool_calls"):
        kept["tool_calls"] = [{**call, "function": {**call["function"], "arguments": _arguments_text(call)}}
                              for call in message["tool_calls"]]
    return {**kept, "weight": 0} if message.get("train") is False else kept


def _arguments_text(call: Row) -> str:
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _tools(row: Row) -> Row:
    return {"tools": row["tools"]} if row.get("tools") else {}


def _sharegpt(row: Row, number: int) -> Row:
    """ShareGPT: a call is a turn of its own, as JSON text."""
    messages = _conversation(row, number, "ShareGPT")
    turns: list[Row] = []
    for message in messages:
        calls = message.get("tool_calls")
        if message["content"] or not calls:
            turns.append({"from": _SHAREGPT[message["role"]], "value": message["content"]})
        if calls:
            functions = [call["function"] for call in calls]
            value = functions[0] if len(functions) == 1 else functions
            turns.append({"from": "function_call", "value": json.dumps(value, ensure_ascii=False)})
    return {"conversations": turns, **({"tools": json.dumps(row["tools"], ensure_ascii=False)} if row.get("tools") else {})}


def _alpaca(row: Row, number: int) -> Row:
    """Alpaca: the last question and answer, what was said before as `history`, the system text as `system`."""
    messages = _conversation(row, number, "Alpaca")
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages[1:] if system is not None else messages
    if any(message["role"] != ("user", "assistant")[place % 2] or message.get("tool_calls") for place, message in enumerate(turns)) \
            or len(turns) % 2:
        raise _no_place(number, "Alpaca")
    history = [[turns[place]["content"], turns[place + 1]["content"]] for place in range(0, len(turns) - 2, 2)]
    record: Row = {"instruction": turns[-2]["content"], "input": "", "output": turns[-1]["content"]}
    return {**record, **({"system": system} if system is not None else {}), **({"history": history} if history else {})}


def _xtuner(row: Row, number: int) -> Row:
    """XTuner: pairs of input and output, the system text with the first."""
    if "text" in row:
        return {"conversation": [{"input": "", "output": row["text"]}]}
    record = _alpaca(row, number)
    pairs: list[Row] = [{"input": asked, "output": answer} for asked, answer in
                        [*record.get("history", []), [record["instruction"], record["output"]]]]
    return {"conversation": [{"system": record["system"], **pairs[0]}, *pairs[1:]] if "system" in record else pairs}


def _conversation(row: Row, number: int, layout: str) -> list[Row]:
    if "messages" not in row:
        raise _no_place(number, layout)
    return row["messages"]


def _no_place(number: int, layout: str) -> StudioError:
    return StudioError("Row {number} has no place in the layout {layout}.", "Export it with --layout openai, or as it is.", number=number,
                       layout=layout)


EXPORTS: dict[str, Callable[[Row, int], Row]] = {"rows": _own, "openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca,
                                                 "xtuner": _xtuner}
