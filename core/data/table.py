"""A page of rows as a table that a person can edit, and the edits back into rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.languages import language_of
from core.data.library import GENERAL, texts_of
from core.errors import StudioError
from core.words import Text

ROWS_PER_PAGE = 20
COLUMNS = ("group", "lang", "before", "question", "answer")


def page_count(rows: int, per_page: int = ROWS_PER_PAGE) -> int:
    return max(1, -(-rows // per_page))


def find_rows(rows: Sequence[dict[str, Any]], text: str = "", group: str | None = None) -> list[int]:
    """Places of the rows of a group in which `text` occurs, case aside."""
    wanted = text.casefold()
    return [place for place, row in enumerate(rows) if (group is None or row["group"] == group)
            and (not wanted or any(wanted in text.casefold() for text in texts_of(row)))]


def table_page(rows: Sequence[dict[str, Any]], places: Sequence[int]) -> list[dict[str, str]]:
    """The rows at `places` as records: the last question and answer can be edited, what was said before is shown.

    A document stands in the place of the answer.
    """
    return [_record(rows[place]) for place in places]


def _record(row: dict[str, Any]) -> dict[str, str]:
    if "text" in row:
        return {"group": row["group"], "lang": row.get("lang", "en"), "before": "", "question": "", "answer": row["text"]}
    turns = row["messages"]
    question, answer = _last_pair(turns)
    before = [message for index, message in enumerate(turns) if index not in (question, answer)]
    said = {"question": question, "answer": answer}
    return {"group": row["group"], "lang": row.get("lang", "en"),
            "before": "\n".join(f"{turn['role']}: {_said(turn)}" for turn in before),
            **{column: "" if index is None else turns[index]["content"] for column, index in said.items()}}


def _said(turn: dict[str, Any]) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in turn.get("tool_calls", [])]
    return " ".join([turn["content"], *calls]).strip()


def _last_pair(turns: Sequence[dict[str, Any]]) -> tuple[int | None, int | None]:
    """Index of the last user turn and of the last assistant turn."""
    found = {role: index for index, message in enumerate(turns) for role in [message["role"]]}
    return found.get("user"), found.get("assistant")


def edit_rows(rows: Sequence[dict[str, Any]], places: Sequence[int], edits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All rows with the edits of one page.

    Args:
        rows: all rows.
        places: which of them the page shows, in its order.
        edits: what a table editor reports: `edited_rows` {line: {column: value}}, `added_rows` [{column: value}] and
            `deleted_rows` [line], lines from 0 on the page. New rows come right after the last one of the page.

    Raises:
        StudioError: a question or an answer would be empty.
    """
    changed: dict[int, dict[str, Any]] = {}
    for line, cells in edits.get("edited_rows", {}).items():
        place = places[int(line)]
        changed[place] = _edited(rows[place], cells, place + 1)
    deleted = {places[int(line)] for line in edits.get("deleted_rows", [])}
    added = [_made(cells, number) for number, cells in enumerate(edits.get("added_rows", []), 1) if any(_cell(v) for v in cells.values())]
    after = places[-1] if places else len(rows) - 1
    result: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        if place not in deleted:
            result.append(changed.get(place, row))
        if place == after:
            result += added
    return result or added


def _edited(row: dict[str, Any], cells: Mapping[str, Any], number: int) -> dict[str, Any]:
    labels = {key: _cell(cells[key]).strip() for key in ("group", "lang") if _cell(cells.get(key)).strip()}
    if "text" in row:
        text = _cell(cells.get("answer", row["text"]))
        if not text.strip():
            raise StudioError("The {column} of row {number} is empty.", "Write it, or delete the row.",
                              column=Text("answer"), number=number)
        return {**row, **labels, "text": text}
    turns = [dict(message) for message in row["messages"]]
    for column, index in zip(("question", "answer"), _last_pair(turns), strict=True):
        if column in cells and index is not None:
            text = _cell(cells[column])
            if not text.strip() and not turns[index].get("tool_calls"):
                raise StudioError("The {column} of row {number} is empty.", "Write it, or delete the row.",
                                  column=Text(column), number=number)
            if turns[index]["content"] != text:  # a rewritten answer is no longer cut off
                turns[index] = {key: value for key, value in {**turns[index], "content": text}.items() if key != "cut"}
    return {**row, **labels, "messages": turns}


def _made(cells: Mapping[str, Any], number: int) -> dict[str, Any]:
    question, answer = _cell(cells.get("question")), _cell(cells.get("answer"))
    for column, text in (("question", question), ("answer", answer)):
        if not text.strip():
            raise StudioError("The {column} of new row {number} is empty.", "Write it, or delete the row.",
                              column=Text(column), number=number)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "group": _cell(cells.get("group")).strip() or GENERAL,
            "lang": _cell(cells.get("lang")).strip() or language_of(question + answer)}


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else ""
