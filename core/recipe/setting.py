"""What a recipe field tells about itself, once: form, YAML comments, checks and docs read it here."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.errors import StudioError
from core.words import Text
from core.workspace import check_name

Choice = tuple[str | int, Text]


@dataclass(frozen=True, eq=False)
class Setting:
    """The words and limits of one field.

    Attributes:
        label: a few words, for forms and tables.
        help: one or two sentences: what it does and when to change it.
        unit: what the number counts; None for a pure number or a text.
        minimum: smallest value allowed, itself included.
        maximum: largest value allowed, itself included.
        choices: the values allowed, each with what it means.
        expects: what to write, where the type alone does not say it.
        is_name: the value is the name of something in the workspace, never a path.
        shown_if: (path, values): the field matters only while the field at `path` has one of `values`.
        level: `expert` fields stay folded away in the form.
    """

    label: Text
    help: Text
    unit: Text | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Choice, ...] = ()
    expects: Text | None = None
    is_name: bool = False
    shown_if: tuple[str, tuple[Any, ...]] | None = None
    level: Literal["basic", "expert"] = "basic"

    @property
    def range(self) -> Text | None:
        """The limits with their unit, for people: "1 to 4096 tokens"."""
        if self.minimum is None or self.maximum is None:
            return None
        limits = {"minimum": plain_number(self.minimum), "maximum": plain_number(self.maximum)}
        if self.unit is None:
            return Text("{minimum} to {maximum}", **limits)
        return Text("{minimum} to {maximum} {unit}", **limits, unit=self.unit)

    @property
    def choice_names(self) -> list[str | int]:
        return [name for name, _ in self.choices]

    def check(self, value: Any) -> None:
        """Raise what pydantic collects when `value`, of the right type already, is out of bounds."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            below = self.minimum is not None and value < self.minimum
            above = self.maximum is not None and value > self.maximum
            if below or above:
                raise PydanticCustomError("out_of_range", "outside {limits}", {"limits": str(self.range)})
        if value in ("", []):
            # Where an empty text means something (no title, no system text), the field has no `expects`.
            if self.expects is not None or self.is_name:
                raise PydanticCustomError("nothing_given", "empty")
        elif self.is_name and isinstance(value, str):
            try:
                check_name(value, "dataset")
            except StudioError as error:
                raise PydanticCustomError("bad_name", "{reason}", {"reason": str(error)}) from error

    def __call__(self, schema: dict[str, Any]) -> None:
        """Fill the JSON schema of the field (pydantic calls this through `json_schema_extra`)."""
        schema.update(title=str(self.label), description=str(self.help))
        limits = {"minimum": self.minimum, "maximum": self.maximum, "unit": self.unit and str(self.unit)}
        schema.update({key: value for key, value in limits.items() if value is not None})


def plain_number(value: float) -> str:
    """1e-07, 0.5, 4096: a number as a person writes it."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:g}"
    digits = str(int(value))
    return digits if len(digits) <= 30 else digits[:30] + "…"


def setting(default: Any, label: Text, help: Text, **limits: Any) -> Any:
    """A pydantic field that carries a `Setting`; `...` as default makes it required."""
    about = Setting(label, help, **limits)
    if isinstance(default, BaseModel):
        return Field(default_factory=lambda: default, json_schema_extra=about)
    if isinstance(default, list):
        return Field(default_factory=lambda: list(default), json_schema_extra=about)
    return Field(default, json_schema_extra=about)


class Section(BaseModel):
    """Base of every part of a recipe: frozen, no unknown keys, no guessing of types ("no" is not false)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def keep_bounds(cls, value: Any, info: ValidationInfo) -> Any:
        setting_of(cls, info.field_name).check(value)
        return value


class RecipeField(NamedTuple):
    """One leaf of a recipe: `schedule.learning_rate`, its words, its default (or value in a given recipe)."""

    path: str
    setting: Setting
    default: Any


def setting_of(section: type[BaseModel], name: str) -> Setting:
    about = section.model_fields[name].json_schema_extra
    assert isinstance(about, Setting), f"{section.__name__}.{name} has no setting"
    return about


def fields(recipe: Section | type[Section]) -> list[RecipeField]:
    """Every leaf of a recipe, in the order of the file.

    Args:
        recipe: a class gives the defaults, an instance its own values. Fields of list items come once for a
            class, as `data.sources[].dataset`, and per item for an instance, as `data.sources[0].dataset`.
    """
    return list(_walk(recipe, ""))


def sections(recipe: type[Section]) -> dict[str, Setting]:
    """The headings: name of each section -> its words."""
    return {name: setting_of(recipe, name) for name in recipe.model_fields if section_type(recipe, name)}


def setting_at(recipe: type[Section], path: str) -> Setting:
    """The words of the field at a dotted path; an item of a list has those of the list.

    Raises:
        KeyError: there is no such field.
    """
    known = {field.path: field.setting for field in fields(recipe)}
    general = re.sub(r"\[\d+\]", "[]", path)
    return known[general if general in known else general.removesuffix("[]")]


def _walk(recipe: Section | type[Section], prefix: str) -> Iterator[RecipeField]:
    owner = recipe if isinstance(recipe, type) else type(recipe)
    for name, info in owner.model_fields.items():
        path = prefix + name
        value = info.get_default(call_default_factory=True) if recipe is owner else getattr(recipe, name)
        inner, item = section_type(owner, name), item_type(owner, name)
        if inner is not None:
            yield from _walk(inner if recipe is owner else value, path + ".")
            continue
        yield RecipeField(
            path, setting_of(owner, name), None if info.is_required() and recipe is owner else value
        )
        if item is not None and recipe is owner:
            yield from _walk(item, path + "[].")
        elif item is not None:
            for index, entry in enumerate(value):
                yield from _walk(entry, f"{path}[{index}].")


def section_type(owner: type[BaseModel], name: str) -> type[Section] | None:
    """The section class of a field, None for a leaf."""
    annotation = owner.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def item_type(owner: type[BaseModel], name: str) -> type[Section] | None:
    """The class of the items, for a field that is a list of sections."""
    annotation = owner.model_fields[name].annotation
    items = get_args(annotation) if get_origin(annotation) is list else ()
    return items[0] if items and isinstance(items[0], type) and issubclass(items[0], Section) else None


def value_types(owner: type[BaseModel], name: str) -> list[Any]:
    """The plain types a field takes, without None: [int], [str, list]; a choice of numbers is a number."""
    annotation = owner.model_fields[name].annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [int if _is_choice_of_numbers(part) else get_origin(part) or part for part in parts if part is not type(None)]


def _is_choice_of_numbers(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and all(isinstance(choice, int) for choice in get_args(annotation))
