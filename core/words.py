"""Sentences that appear on screen, on the command line and in files, in English and Chinese.

A sentence is written once, in English, where it arises: `Text("Step {step} was saved.", step=12)`. Its Chinese form is looked up by
the English template in `core/zh/*.yaml`, so a file written today can be read in either language tomorrow. A test fails when a
template has no translation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml

LANGUAGES = ("en", "zh")
_TRANSLATIONS = Path(__file__).parent / "zh"


@cache
def chinese_templates() -> dict[str, str]:
    """English template -> Chinese template, from every file in `core/zh`."""
    merged: dict[str, str] = {}
    for path in sorted(_TRANSLATIONS.glob("*.yaml")):
        merged.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return merged


@dataclass(frozen=True, init=False)
class Text:
    """An English template with its values; `str()` is English, `to("zh")` Chinese.

    A value may itself be a Text; it is then rendered in the same language.
    """

    template: str
    values: dict[str, Any] = field(default_factory=dict)

    def __init__(self, template: str, **values: Any) -> None:
        object.__setattr__(self, "template", template)
        object.__setattr__(self, "values", values)

    def to(self, language: str) -> str:
        """The sentence in `language`; English where no translation exists."""
        template = self.template if language == "en" else chinese_templates().get(self.template, self.template)
        return template.format(**{key: _render(value, language) for key, value in self.values.items()})

    def __str__(self) -> str:
        return self.to("en")

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file; `Text.from_json` reads it back."""
        return {"template": self.template, "values": {key: _plain(value) for key, value in self.values.items()}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Text:
        values = {key: Text.from_json(v) if _is_text(v) else v for key, v in data.get("values", {}).items()}
        template = data.get("template", "")
        return Text(template, **values)


def _render(value: Any, language: str) -> Any:
    return value.to(language) if isinstance(value, Text) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Text):
        return value.to_json()
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    # numpy's numbers must stay numbers: the template may say {value:.2f}
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"template", "values"}
