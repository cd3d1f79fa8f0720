"""Fixes of what a check has found: each takes rows and returns new ones; nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from core.data.contents import personal_parts
from core.data.findings import Finding, Row, some
from core.errors import StudioError


def drop_rows(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows without those of the finding."""
    gone = set(finding.rows)
    return [row for place, row in enumerate(rows) if place not in gone]


def fill_placeholders(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows with each placeholder replaced by its value; one without a value stays."""
    return _with_texts(rows, finding, _replacing({mark: value for mark, value in values.items() if value.strip()}))


def strip_special_tokens(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows with the control tokens taken out of their texts."""
    return _with_texts(rows, finding, _replacing(dict.fromkeys(finding.examples, "")))


def mask_personal_data(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows with `[email]`, `[phone]` and the like in place of the data."""
    return _with_texts(rows, finding, lambda text: _replacing({found: f"[{kind}]" for kind, found in personal_parts(text)})(text))


def drop_systems(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows without system texts; chat and recipe then decide about one."""
    return [{**row, "messages": row["messages"][1:]} if row.get("messages", [{"role": ""}])[0]["role"] == "system" else row
            for row in rows]


def spell_out_tools(rows: Sequence[Row], finding: Finding, values: dict[str, str]) -> list[Row]:
    """The rows with calls as text of the answer, as `<tool_call>` and JSON, and results as `<tool_response>` of the user."""
    concerned = set(finding.rows)
    return [_spelled_out(row) if place in concerned else row for place, row in enumerate(rows)]


def _spelled_out(row: Row) -> Row:
    messages: list[dict] = []
    for message in row["messages"]:
        if message["role"] == "tool":
            said = f"<tool_response>\n{message['content']}\n</tool_response>"
            if messages and messages[-1]["role"] == "user":
                messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n{said}"}
            else:
                messages.append({"role": "user", "content": said})
            continue
        calls = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in message.get("tool_calls", [])]
        plain = {key: value for key, value in message.items() if key != "tool_calls"}
        messages.append({**plain, "content": "\n".join(part for part in (message["content"], *calls) if part)})
    if row.get("tools"):
        shown = "<tools>\n" + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in row["tools"]) + "\n</tools>"
        first = messages[0]
        messages = [{"role": "system", "content": f"{first['content']}\n\n{shown}"}, *messages[1:]] if first["role"] == "system" else [
            {"role": "system", "content": shown}, *messages]
    return {**{key: value for key, value in row.items() if key != "tools"}, "messages": messages}


def _with_texts(rows: Sequence[Row], finding: Finding, change: Callable[[str], str]) -> list[Row]:
    concerned = set(finding.rows)
    return [_changed(row, change) if place in concerned else row for place, row in enumerate(rows)]


def _changed(row: Row, change: Callable[[str], str]) -> Row:
    if "text" in row:
        return {**row, "text": change(row["text"])}
    changed = {key: [{**message, "content": change(message["content"])} for message in row[key]]
               for key in ("messages", "rejected") if key in row}
    return {**row, **changed}


def _replacing(replacements: dict[str, str]) -> Callable[[str], str]:
    def change(text: str) -> str:
        for mark, value in replacements.items():
            text = text.replace(mark, value)
        return text

    return change


FIXES: dict[str, Callable[[Sequence[Row], Finding, dict[str, str]], list[Row]]] = {
    "drop_rows": drop_rows, "fill_placeholders": fill_placeholders, "strip_special_tokens": strip_special_tokens,
    "mask_personal_data": mask_personal_data, "drop_systems": drop_systems, "spell_out_tools": spell_out_tools,
}


def fix_rows(rows: Sequence[Row], finding: Finding, values: dict[str, str] | None = None) -> list[Row]:
    """New rows in which the finding is mended.

    Args:
        rows: the rows that were looked at, unchanged.
        finding: what to mend.
        values: placeholder -> what to write in its place.

    Raises:
        StudioError: it has no such fix, no value was given, or no row would be left.
    """
    if finding.fix not in FIXES:
        raise StudioError("There is no automatic fix for {code}.", "Change the rows by hand.", code=finding.code)
    if finding.fix == "fill_placeholders" and not any(value.strip() for value in (values or {}).values()):
        raise StudioError("No value was given for the placeholders.", "Write what shall stand in place of {marks}.",
                          marks=some(finding.examples))
    mended = FIXES[finding.fix](rows, finding, values or {})
    if not mended:
        raise StudioError("This would leave no row at all.", "Change the rows by hand, or import a better file.")
    return mended
