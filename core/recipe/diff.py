"""What differs between two recipes."""

from __future__ import annotations

from typing import Any, NamedTuple

from core.recipe.schema import Recipe


class Change(NamedTuple):
    """One field with another value; None on the side where a list has no such item."""

    path: str
    a: Any
    b: Any


def diff_recipes(a: Recipe, b: Recipe) -> list[Change]:
    """The changed fields only, in the order of the file, values as plain data."""
    return list(_compare("", a.model_dump(), b.model_dump()))


def value_text(value: Any) -> str:
    """A value of a change in one line, for a table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _compare(path: str, a: Any, b: Any) -> list[Change]:
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        prefix = f"{path}." if path else ""
        return [change for key in a for change in _compare(prefix + key, a[key], b[key])]
    if _are_sections(a) and _are_sections(b):
        changes = []
        for index in range(max(len(a), len(b))):
            left, right = (side[index] if index < len(side) else None for side in (a, b))
            changes += _compare(f"{path}[{index}]", left, right)
        return changes
    return [Change(path, a, b)]


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
