"""Recipes: one typed file that decides a training."""

from core.recipe.diff import Change, diff_recipes
from core.recipe.document import RecipeError
from core.recipe.files import (
    Preset,
    build_recipe,
    change_recipe,
    dump_recipe,
    find_recipe,
    list_recipes,
    load_preset,
    load_recipe,
    parse_recipe,
    presets,
    recipe_path,
    save_recipe,
)
from core.recipe.plan import Plan, plan_updates, snapshot_steps, warmup_updates
from core.recipe.schema import Recipe, Source
from core.recipe.setting import RecipeField, Setting, fields, sections

__all__ = [
    "Change",
    "Plan",
    "Preset",
    "Recipe",
    "RecipeError",
    "RecipeField",
    "Setting",
    "Source",
    "build_recipe",
    "change_recipe",
    "diff_recipes",
    "dump_recipe",
    "fields",
    "find_recipe",
    "list_recipes",
    "load_preset",
    "load_recipe",
    "parse_recipe",
    "plan_updates",
    "presets",
    "recipe_path",
    "save_recipe",
    "sections",
    "snapshot_steps",
    "warmup_updates",
]
