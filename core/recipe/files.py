"""Recipes on disk: reading, writing, the presets, and finding one by the name a person gives."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.errors import StudioError
from core.recipe.document import LARGEST_BYTES, RecipeError, field_near, read_document, too_large
from core.recipe.faults import explain, kinds_at
from core.recipe.layout import commented_yaml, edited_text
from core.recipe.preset_words import PRESET_WORDS
from core.recipe.schema import Recipe
from core.redact import redact
from core.roots import check_path
from core.words import Text
from core.workspace import Workspace, check_name, write_text

_PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Preset:
    """A recipe that comes with Sweetspot.

    Attributes:
        name: `identity-lesson-cpu`, what `find_recipe` takes.
        title: the recipe's title.
        when: when to use it; the first lines of its file say the same.
        recipe: the recipe itself.
        text: its commented YAML.
    """

    name: str
    title: Text
    when: Text
    recipe: Recipe
    text: str

    @property
    def summary(self) -> str:
        """When to use it, in English, for a terminal and for JSON."""
        return str(self.when)


def parse_recipe(text: str, name: str) -> Recipe:
    """The recipe in a YAML text.

    Args:
        text: the YAML.
        name: what errors call it: a file name, or "recipe".

    Raises:
        RecipeError: the text is no recipe; names line and field, and how many more faults there are.
    """
    return _parsed(text, name).model_copy(deep=True)


@lru_cache(maxsize=256)
def _parsed(text: str, name: str) -> Recipe:
    """Kept, as pages read the same frozen recipes again and again, and reading YAML with its places takes milliseconds."""
    document = read_document(text, name)
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document, name) from error


def build_recipe(data: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """The recipe in plain data, as a form collects it; the same errors as for a file, without lines."""
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        raise explain(error, None, name) from error


def change_recipe(recipe: Recipe, changes: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """A recipe with some fields changed, as in `{"schedule.updates": 48, "data.sources[0].dataset": "alex"}`.

    Setting one of `schedule.updates` and `schedule.epochs` unsets the other. A text for a field that takes no text is
    read as YAML, as it comes from a command line: "48", "1e-4", "[near, general]", "null".

    Raises:
        RecipeError: a field does not exist, or its value is not allowed.
    """
    data = recipe.model_dump()
    for path, given in changes.items():
        value = _typed(path, given, name)
        *parents, last = [int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", path) or [""]]
        place: Any = data
        try:
            for part in parents:
                place = place[part]
            if isinstance(last, int) and last >= len(place):
                raise IndexError
            place[last] = value
        except (KeyError, IndexError, TypeError) as error:
            raise RecipeError(
                "A recipe has no field {field}.",
                "`sweetspot recipe show NAME` lists them.",
                file=name,
                field=path,
            ) from error
        other = {"schedule.updates": "epochs", "schedule.epochs": "updates"}.get(path)
        if other and value is not None and f"schedule.{other}" not in changes:
            data["schedule"][other] = None
    return build_recipe(data, name)


def _typed(path: str, value: Any, name: str) -> Any:
    """`value`, read as YAML when it is a text and the field at `path` takes something else."""
    if not isinstance(value, str) or path.endswith("]") or str in (kinds := kinds_at(path)):
        return value
    return read_document(f"value: {value}", name).data["value"] if {int, float, bool, list} & kinds else value


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a file.

    Raises:
        StudioError: there is no such file, it cannot be read, or it is no recipe (RecipeError).
    """
    return parse_recipe(read_recipe_text(Path(path)), Path(path).name)


def read_recipe_text(path: Path) -> str:
    """The text of a recipe file, right or wrong.

    Raises:
        StudioError: no such file, no permission, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            with path.open("rb") as file:
                raise too_large(file.read(LARGEST_BYTES).decode("utf-8", "replace"), path.name)
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise StudioError(
            "There is no recipe file {path}.",
            "`sweetspot recipe presets` lists what you can start from.",
            path=path,
        ) from error
    except OSError as error:
        raise StudioError(
            "The recipe {path} cannot be read: {reason}.",
            "Check that it is a file and that you may read it.",
            path=path,
            reason=error.strerror,
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            "This line is not UTF-8 text.",
            "Save the file as UTF-8 in your editor.",
            file=path.name,
            line=(line := error.object.count(b"\n", 0, error.start) + 1),
            near=field_near(error.object.decode("utf-8", "replace"), line),
        ) from error


def dump_recipe(recipe: Recipe, previous_text: str | None = None, language: str = "en") -> str:
    """The recipe as YAML.

    Args:
        recipe: what to write.
        previous_text: a text that a person may have edited; its comments, order and spelling stay, only
            changed values are replaced and missing ones added. None writes everything anew, with label, range
            and help as comments.
        language: of the comments, "en" or "zh"; has no effect on a previous text.

    Raises:
        RecipeError: `previous_text` is no recipe. It is never thrown away for that.
    """
    if previous_text is None:
        return commented_yaml(recipe, language)
    document = read_document(previous_text, "recipe")
    text = edited_text(document, parse_recipe(previous_text, "recipe"), recipe)
    try:
        if parse_recipe(text, "recipe") == recipe:
            return text
    except RecipeError:
        pass
    # A layout so unusual that it cannot be edited in place: right values come before kept comments.
    return commented_yaml(recipe, language)


def save_recipe(workspace: Workspace, name: str, recipe: Recipe, *, replace: bool = True, language: str = "en") -> Path:
    """Write the recipe to `recipes/<name>.yaml`, keeping the comments of a file that is there already.

    Args:
        workspace: where to.
        name: of the recipe; the file is called `<name>.yaml`.
        recipe: what to write.
        replace: False refuses to change an existing recipe.
        language: of the comments in a new file.

    Raises:
        StudioError: the name cannot be one, the recipe exists and `replace` is False, or the existing file
            has errors (it is then left as it is).
    """
    path = workspace.recipes / f"{check_name(name, 'recipe')}.yaml"
    exists = path.exists()
    if exists and not replace:
        raise StudioError(
            "There is already a recipe called {name}.",
            "Choose another name, or delete {path} first.",
            name=name,
            path=path,
        )
    write_text(path, redact(dump_recipe(recipe, read_recipe_text(path) if exists else None, language)))
    return path


def list_recipes(workspace: Workspace) -> list[str]:
    """Names of the recipes in the workspace."""
    return sorted(path.stem for path in workspace.recipes.glob("*.yaml") if not path.name.startswith("."))


@cache
def _read_presets() -> tuple[Preset, ...]:
    return tuple(_read_preset(_PRESETS / f"{name}.yaml") for name in PRESET_WORDS)


def _read_preset(path: Path) -> Preset:
    title, when = PRESET_WORDS[path.stem]
    text = path.read_text(encoding="utf-8")
    return Preset(path.stem, title, when, parse_recipe(text, path.name), text)


def presets() -> list[Preset]:
    """Every preset, the lesson's first."""
    return list(_read_presets())


def load_preset(name: str) -> Recipe:
    """The recipe of a preset.

    Raises:
        StudioError: there is no such preset.
    """
    for preset in presets():
        if preset.name == name:
            return preset.recipe
    raise StudioError(
        "There is no preset called {name}.",
        "There are: {names}.",
        name=name,
        names=", ".join(preset.name for preset in presets()),
    )


def find_recipe(workspace: Workspace, ref: str) -> Recipe:
    """The recipe that a person means by `ref`: a name in the workspace, a preset, or the path of a file.

    Raises:
        StudioError: nothing answers to it, or the file has errors.
    """
    return load_recipe(recipe_path(workspace, ref))


def recipe_path(workspace: Workspace, ref: str) -> Path:
    """The file of the recipe that `ref` names; a recipe of one's own comes before a preset of the same name.

    Raises:
        StudioError: nothing answers to it; suggests the nearest name.
    """
    is_path = "/" in ref or "\\" in ref or ref.startswith("~") or ref.lower().endswith((".yaml", ".yml"))
    if not is_path:
        for folder in (workspace.recipes, _PRESETS):
            if _is_file(folder / f"{ref}.yaml"):
                return folder / f"{ref}.yaml"
    elif _is_file(path := check_path(workspace, Path(ref))):
        return path
    known = [*list_recipes(workspace), *(preset.name for preset in presets())]
    guess = difflib.get_close_matches(Path(ref).stem if is_path else ref, known, 1, 0.5)
    if is_path:
        raise StudioError(
            "There is no recipe file {path}.",
            "`sweetspot recipe presets` lists what you can start from.",
            path=ref,
        )
    if guess:
        raise StudioError("There is no recipe called {name}.", "Did you mean {guess}?", name=ref, guess=guess[0])
    raise StudioError(
        "There is no recipe called {name}.",
        "`sweetspot recipe presets` lists what you can start from.",
        name=ref,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False
