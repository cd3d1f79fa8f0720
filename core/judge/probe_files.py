"""Reading a user's own probes: JSONL (one probe a line) or YAML (a list of them). No torch.

    {"question": "What is 6 times 7?", "check": {"contains": "42"}}
    {"messages": [{"role": "user", "content": "Hi"}, ...], "id": "greeting", "check": {"regex": "(?i)hello|hi"}}
    {"question": "Are you my assistant?"}

A probe with a check counts in the verdict; one without is asked and shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from core.errors import StudioError
from core.judge.checks import find_fault
from core.judge.probes import LONGEST_QUESTION, language_of
from core.judge.taught import OWN

_FIELDS = {"question", "messages", "id", "lang", "about", "check", "expect"}
_ROLES = {"system", "user", "assistant"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_PROBES = 2000
_MOST_BYTES = 20_000_000


def read_probe_file(path: Path) -> list[dict[str, Any]]:
    """The probes of a file, ready to be asked, in the group `own`.

    Raises:
        StudioError: the file or one of its rows cannot be used; the sentence names file, row and field.
    """
    if not path.is_file():
        raise StudioError("There is no file {file}.", "Give the path of a JSONL or YAML file with one probe a row.", file=path)
    if path.stat().st_size > _MOST_BYTES:
        raise StudioError("{file} is too large for a file of probes.", "{limit} probes are the most.", file=path.name, limit=MOST_PROBES)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudioError("{file} is not in UTF-8 (byte {place}).", "Save it as UTF-8 and try again.", file=path.name,
                          place=error.start) from error
    rows = _yaml_rows(path, text) if path.suffix.lower() in (".yaml", ".yml") else _json_rows(path, text)
    probes: list[dict[str, Any]] = []
    for number, row in rows:
        try:
            probes.append(_probe(row, number, {probe["id"] for probe in probes}))
        except StudioError as error:
            raise StudioError("{file}, row {row}: {fault}", "{way}", file=path.name, row=number, fault=error.problem,
                              way=error.hint) from error
        if len(probes) > MOST_PROBES:
            raise StudioError("{file} has more than {limit} probes.", "Every snapshot answers all of them; keep the telling ones.",
                              file=path.name, limit=MOST_PROBES)
    if not probes:
        raise StudioError("{file} holds no probe.", "Write one a row, for example {example}.", file=path.name,
                          example='{"question": "What is 6 times 7?", "check": {"contains": "42"}}')
    return probes


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise StudioError("{file}, row {row}: this is no JSON: {reason}.", "Each line is one object in braces, its texts in double "
                                  "quotes.", file=path.name, row=number, reason=getattr(error, "msg", "too deep")) from error


def _yaml_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise StudioError("{file}, line {line}: this is no YAML.", "A list of probes, each beginning with a dash.", file=path.name,
                          line=mark.line + 1 if mark else "?") from error
    if not isinstance(found, list):
        raise StudioError("{file} is no list of probes.", "Each probe begins with a dash: `- question: ...`.", file=path.name)
    yield from enumerate(found, start=1)


def _probe(row: Any, number: int, taken: set[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise StudioError("a probe is an object with fields, not {value}.", "Its fields: {fields}.", value=repr(row)[:60],
                          fields=", ".join(sorted(_FIELDS)))
    if unknown := sorted(str(name) for name in row if name not in _FIELDS):
        raise StudioError("there is no field {field}.", "Its fields: {fields}.", field=unknown[0], fields=", ".join(sorted(_FIELDS)))
    if row.get("check") is not None and (fault := find_fault(row["check"])):
        raise fault
    messages = _messages(row)
    question = messages[-1]["content"]
    name = str(row.get("id") or f"own-file-{number:03d}")
    if not _ID.fullmatch(name):
        raise StudioError("the id {id} cannot be used.", "Use up to 64 letters, digits, dots, dashes and underscores.", id=repr(name)[:80])
    if name in taken:
        raise StudioError("the id {id} stands in an earlier row already.", "Give each probe its own, or none.", id=name)
    probe = {"id": name, "group": OWN, "lang": str(row.get("lang") or language_of(question)), "messages": messages,
             "about": str(row.get("about") or "other")}
    return probe | {field: value for field, value in (("check", row.get("check")), ("expect", _expected(row))) if value}


def _expected(row: dict[str, Any]) -> list[str]:
    found = row.get("expect") or []
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise StudioError("`expect` wants a text or a list of texts.", "Write for example {example}.", example='"expect": ["Paris"]')
    return found


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    if ("question" in row) == ("messages" in row):
        raise StudioError("a probe has either a question or messages.", "Write for example {example}.",
                          example='{"question": "What is 6 times 7?"}')
    given = [{"role": "user", "content": row["question"]}] if "question" in row else row["messages"]
    if not isinstance(given, list) or not all(
            isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str) for turn in given):
        raise StudioError("{field} cannot be read.", "A question is a text; messages are a list of turns with a role (system, user or "
                          "assistant) and a content.", field="question" if "question" in row else "messages")
    if not given or given[-1]["role"] != "user" or not given[-1]["content"].strip():
        raise StudioError("the last turn must be the user's, and say something.", "End with what the model shall answer.")
    if (length := max(len(turn["content"]) for turn in given)) > LONGEST_QUESTION:
        raise StudioError("The question has {length} characters; {limit} are the most.", "Ask something shorter.", length=length,
                          limit=LONGEST_QUESTION)
    return [{"role": turn["role"], "content": turn["content"].strip()} for turn in given]

