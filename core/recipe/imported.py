"""Saving an imported config as a recipe of the workspace."""

from __future__ import annotations

from pathlib import Path

from core.recipe.files import list_recipes
from core.recipe.xtuner import ImportedConfig
from core.workspace import Workspace, check_name, write_text


def save_imported(workspace: Workspace, imported: ImportedConfig, name: str | None = None, language: str = "en") -> Path:
    """Write the recipe with its notes as comments; never over another recipe: a taken name gets a number.

    Raises:
        StudioError: the name cannot be one.
    """
    wanted = check_name(name or imported.name, "recipe")
    taken, free, number = set(list_recipes(workspace)), wanted, 1
    while free in taken:
        number += 1
        free = f"{wanted}-{number}"
    path = workspace.recipes / f"{free}.yaml"
    write_text(path, imported.to_text(language))
    return path
