"""A recipe while it is being changed on the page: kept on disk, so that a reload or another tab finds it as it was."""

from __future__ import annotations

from pathlib import Path

from core.data.library import Card, list_datasets
from core.errors import StudioError
from core.recipe.files import change_recipe, dump_recipe, parse_recipe, read_recipe_text, recipe_path
from core.recipe.schema import Recipe
from core.redact import redact
from core.workspace import Workspace, check_name, explain_full_disk, write_text


def read_draft(workspace: Workspace, name: str) -> str | None:
    """The unsaved text of the recipe `name`; None when nothing was changed."""
    path = _draft_path(workspace, name)
    return path.read_text(encoding="utf-8") if path.exists() else None


def write_draft(workspace: Workspace, name: str, text: str) -> None:
    """Keep a text, right or wrong."""
    path = _draft_path(workspace, name)
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, redact(text))


def drop_draft(workspace: Workspace, name: str) -> None:
    path = _draft_path(workspace, name)
    with explain_full_disk(path):
        path.unlink(missing_ok=True)


def save_draft(workspace: Workspace, name: str, text: str, new_name: str) -> Path:
    """Save the text of the recipe `name` as the recipe `new_name`, every comment kept, and forget the draft.

    Raises:
        StudioError: the text has errors, or another recipe has that name.
    """
    parse_recipe(text, "recipe")
    path = workspace.recipes / f"{check_name(new_name, 'recipe')}.yaml"
    if path.exists() and new_name != name:
        raise StudioError("There is already a recipe called {name}.", "Choose another name, or delete {path} first.",
                          name=new_name, path=path)
    write_text(path, redact(text))
    drop_draft(workspace, name)
    return path


def delete_recipe(workspace: Workspace, name: str) -> None:
    """Delete a recipe of the workspace and its draft; runs keep their own frozen copy.

    Raises:
        StudioError: the workspace must not be written.
    """
    path = workspace.recipes / f"{check_name(name, 'recipe')}.yaml"
    with explain_full_disk(path):
        path.unlink(missing_ok=True)
    drop_draft(workspace, name)


def _draft_path(workspace: Workspace, name: str) -> Path:
    return workspace.cache / "drafts" / f"{check_name(name, 'recipe')}.yaml"


def starting_text(workspace: Workspace, name: str, dataset: str | None = None, language: str = "en") -> str:
    """The text of the recipe `name` as it is saved; a preset is put on a dataset that is here.

    Args:
        workspace: where recipes and datasets lie.
        name: a recipe of the workspace, or a preset.
        dataset: the one to train on; None keeps what the recipe names, or the newest for a preset.
        language: of the comments in a preset.

    Raises:
        StudioError: there is no such recipe.
    """
    path = recipe_path(workspace, name)
    text = read_recipe_text(path)
    cards = [found.card for found in list_datasets(workspace)]
    is_preset = path.parent != workspace.recipes
    if dataset is None and not is_preset:
        return text
    recipe = parse_recipe(text, path.name)
    card = next((card for card in cards if card.name == dataset), cards[0] if cards else None)
    adapted = on_card(recipe, card) if card else recipe
    return dump_recipe(adapted, None if is_preset and language != "en" else text, language)


def on_card(recipe: Recipe, card: Card) -> Recipe:
    """The recipe with this dataset in every source; groups that it does not have are left out, and so is a source left without any.

    A recipe none of whose groups exist takes all rows of the dataset.
    """
    sources = []
    for source in recipe.data.sources:
        groups = None if source.groups is None else [group for group in source.groups if group in card.groups]
        if groups is None or groups:
            sources.append({"dataset": card.name, "groups": groups, "weight": source.weight})
    return change_recipe(recipe, {"data.sources": sources or [{"dataset": card.name}]})

