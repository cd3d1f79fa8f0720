"""The user's own checks on an answer: does it contain, match, equal, parse, or please a stronger model. No torch.

    {"contains": "Paris"}                      letter case aside; a list wants one of them
    {"equals": "42"}                           but for spaces around it and letter case
    {"regex": "[0-9]{4}-[0-9]{2}"}              found somewhere in it; "^...$" for the whole
    {"json": true}, {"json": ["name", "age"]}  it is JSON, in a code fence or not; with these keys at the top
    {"judge": "Is it polite?", "url": "http://127.0.0.1:8000/v1", "model": "big"}   see `core.judge.endpoint`
"""

from __future__ import annotations

import json
import re
from typing import Any

import regex

from core.errors import StudioError

KINDS = ("contains", "equals", "regex", "json", "judge")
# A pattern that goes back and forth for longer than this over one answer will do so over every answer.
REGEX_SECONDS = 0.5
_FENCE = re.compile(r"^```[a-zA-Z]*\s*\n(.*?)\n?```$", re.DOTALL)
_MOST_PATTERN = 1000  # characters


def kind_of(check: dict[str, Any]) -> str:
    """Which of KINDS a usable check is."""
    return next(kind for kind in KINDS if kind in check)


def find_fault(check: Any) -> StudioError | None:
    """What is wrong with a check as it was written, or nothing."""
    kinds = ", ".join(KINDS)
    if not isinstance(check, dict) or sum(kind in check for kind in KINDS) != 1:
        return StudioError("A check names exactly one of: {kinds}.", 'Write for example {example}.', kinds=kinds,
                           example='{"check": {"contains": "Paris"}}')
    kind = kind_of(check)
    known = {"judge": {"judge", "url", "model"}}.get(kind, {kind})
    if extra := sorted(set(check) - known):
        return StudioError("A check of the kind {kind} has no field {field}.", "Its fields: {fields}.", kind=kind, field=extra[0],
                           fields=", ".join(sorted(known)))
    return {"contains": _contains_fault, "equals": _text_fault, "regex": _regex_fault, "json": _json_fault,
            "judge": _judge_fault}[kind](check)


def _contains_fault(check: dict[str, Any]) -> StudioError | None:
    wanted = check["contains"]
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if wanted and all(isinstance(text, str) and text.strip() for text in wanted):
        return None
    return StudioError("`contains` wants a text, or a list of texts of which one must occur.", "Write for example {example}.",
                       example='{"contains": ["Paris", "巴黎"]}')


def _text_fault(check: dict[str, Any]) -> StudioError | None:
    if isinstance(check["equals"], str) and check["equals"].strip():
        return None
    return StudioError("`equals` wants a text.", "Write for example {example}.", example='{"equals": "42"}')


def _regex_fault(check: dict[str, Any]) -> StudioError | None:
    pattern = check["regex"]
    if not isinstance(pattern, str) or not 0 < len(pattern) <= _MOST_PATTERN:
        return StudioError("`regex` wants a pattern of 1 to {limit} characters.", "Write for example {example}.", limit=_MOST_PATTERN,
                           example='{"regex": "^[0-9]+$"}')
    try:
        regex.compile(pattern)
    except regex.error as error:
        return StudioError("The pattern {pattern} is no regular expression: {reason}.",
                           "A character with a meaning of its own, such as ( or *, needs a backslash before it.", pattern=pattern,
                           reason=error)
    return None


def _json_fault(check: dict[str, Any]) -> StudioError | None:
    wanted = check["json"]
    if wanted is True or (isinstance(wanted, list) and wanted and all(isinstance(key, str) and key for key in wanted)):
        return None
    return StudioError("`json` wants true, or a list of keys that must be there.", "Write for example {example}.",
                       example='{"json": ["name", "age"]}')


def _judge_fault(check: dict[str, Any]) -> StudioError | None:
    if not isinstance(check["judge"], str) or not check["judge"].strip():
        return StudioError("`judge` wants the question that a stronger model shall answer with yes or no.", "Write for example {example}.",
                           example='{"judge": "Is the answer polite?", "url": "http://127.0.0.1:8000/v1", "model": "big"}')
    url = check.get("url")
    if not isinstance(url, str) or not re.match(r"https?://[^/\s]+", url) or not isinstance(check.get("model"), str) or not check["model"]:
        return StudioError("A judge needs the url of an OpenAI-compatible endpoint and the name of its model.",
                           "Write for example {example}.",
                           example='{"judge": "Is the answer polite?", "url": "http://127.0.0.1:8000/v1", "model": "big"}')
    return None


def passes(check: dict[str, Any], answer: str) -> bool | None:
    """Whether an answer passes a check; None when that could not be found out: a pattern took too long, or it needs a judge."""
    text = answer.strip()
    if "contains" in check:
        wanted = check["contains"] if isinstance(check["contains"], list) else [check["contains"]]
        return any(part.lower() in text.lower() for part in wanted)
    if "equals" in check:
        return text.lower() == check["equals"].strip().lower()
    if "regex" in check:
        try:
            return regex.search(check["regex"], text, timeout=REGEX_SECONDS) is not None
        except TimeoutError:
            return None
    if "json" in check:
        return _is_json(text, check["json"])
    return None


def _is_json(text: str, keys: bool | list[str]) -> bool:
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return keys is True or (isinstance(found, dict) and isinstance(keys, list) and all(key in found for key in keys))
