"""`sweetspot recipe ...`: presets, new recipes, what they say and how they differ."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from core.errors import StudioError
from core.recipe.checks import check_recipe
from core.recipe.diff import diff_recipes, value_text
from core.recipe.files import change_recipe, dump_recipe, find_recipe, presets, save_recipe
from core.recipe.fit import propose_fit
from core.recipe.forecast import Forecast, forecast
from core.recipe.imported import save_imported
from core.recipe.schema import Recipe
from core.recipe.trial import start_trial
from core.recipe.xtuner import ImportedConfig, import_file
from core.recipe.xtuner_notes import KINDS
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, duration, follow, print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="Recipes: presets, new ones, checks, differences.")
DataOption = Annotated[str | None, typer.Option("--data", help="Dataset to use in every source.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Change a field, as in schedule.updates=48; may be repeated.")]


@app.command("presets")
def show_presets(json: JsonOption = False) -> None:
    """List the recipes that come with Sweetspot.

    Example: sweetspot recipe presets
    """
    found = presets()
    if json:
        print_json({"presets": [{"name": preset.name, "title": preset.recipe.title, "about": preset.summary} for preset in found]})
    else:
        print_table(["name", "when to use it"], [[preset.name, preset.summary] for preset in found])


@app.command()
def new(name: str, preset: Annotated[str, typer.Option("--from", help="Preset or recipe to start from.")] = "identity-lesson-cpu",
        data: DataOption = None, set_: SetOption = [], json: JsonOption = False, workspace: WorkspaceOption = None) -> None:  # noqa: B006
    """Write a recipe of your own, with every field explained in comments.

    Example: sweetspot recipe new mine --from identity-lesson-cpu --data alex --set schedule.updates=48
    """
    place = Workspace.open(workspace)
    recipe = adapted(find_recipe(place, preset), data, set_)
    path = save_recipe(place, name, recipe, replace=False)
    if json:
        print_json({"name": name, "path": str(path), "recipe": recipe.model_dump()})
    else:
        say(f"Written to {path}. Next: sweetspot recipe check {name}")


@app.command()
def check(name: str, data: DataOption = None, set_: SetOption = [], json: JsonOption = False,  # noqa: B006
          workspace: WorkspaceOption = None) -> None:
    """Say what a recipe will do before it does it, and what speaks against it; exits 1 when it cannot be started.

    Example: sweetspot recipe check identity-lesson-cpu --data alex
    """
    place = Workspace.open(workspace)
    recipe = adapted(find_recipe(place, name), data, set_)
    findings = check_recipe(place, recipe)
    try:
        known = forecast(place, recipe)
    except StudioError:  # the findings say why
        known = None
    if json:
        print_json({"findings": [{"level": finding.level, "code": finding.code, "field": finding.field, "text": str(finding.text),
                                  "fix": str(finding.fix)} for finding in findings], **_forecast_json(known)})
    else:
        if known is not None:
            _print_forecast(recipe, known)
        for finding in findings:
            say(f"{finding.level:8} {finding.field + ': ' if finding.field else ''}{finding.text}")
            say(f"         -> {finding.fix}")
        if not findings:
            say("Nothing speaks against starting it.")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def _forecast_json(known: Forecast | None) -> dict[str, object]:
    if known is None:
        return {}
    return {"rows": sum(use.rows for use in known.sources), **asdict(known.plan), "sources": [asdict(use) for use in known.sources],
            **{key: value for key, value in asdict(known).items() if key not in ("plan", "sources")}}


def _print_forecast(recipe: Recipe, known: Forecast) -> None:
    plan = known.plan
    rows = sum(use.rows for use in known.sources)
    say(f"{rows} rows, {plan.updates} updates of {recipe.schedule.effective_batch} rows: "
        f"each row is seen {plan.exposures_per_row:.1f} times.")
    for use in known.sources if len(known.sources) > 1 else []:
        groups = f" ({', '.join(use.groups)})" if use.groups else ""
        say(f"  {use.dataset}{groups}: {use.share:.0%} of every update, each of its {use.rows} rows {use.exposures:.1f} times")
    if known.tokens is not None and known.trained_tokens is not None:
        say(f"{known.tokens:,} tokens are read, {known.trained_tokens:,} of them trained; the longest row has {known.longest_tokens}.")
    steps = ", ".join(map(str, plan.snapshot_steps))
    say(f"Up to {len(plan.snapshot_steps)} snapshots when something happens, else at {steps}." if recipe.snapshots.spacing == "events" else
        f"{len(plan.snapshot_steps)} snapshots, at {steps}.")
    if known.snapshot_bytes is not None and known.disk_bytes is not None:
        say(f"Disk: {known.snapshot_bytes / 1e6:.0f} MB a snapshot, {known.disk_bytes / 1e9:.1f} GB in all.")
    if known.memory is not None and known.memory_bytes is not None:
        parts = {part: size for part, size in asdict(known.memory).items() if size >= 5e6}
        say(f"Memory: {'about ' if known.basis == 'arithmetic' else ''}{known.memory_bytes / 1e9:.2f} GB at the peak. By arithmetic: "
            + ", ".join(f"{part} {size / 1e9:.2f}" for part, size in parts.items()) + ".")
    if known.basis is None:
        say("Memory and time cannot be told yet; sweetspot recipe check says what is missing.")
    elif known.seconds is None:
        say(f"Time on {known.device}: this GPU is not known; measure it with sweetspot recipe estimate --measure.")
    else:
        said = {"trial": f"measured by {known.measured_on}", "run": f"at the pace of {known.measured_on}",
                "arithmetic": "a guess from arithmetic; --measure measures it"}[known.basis or "arithmetic"]
        say(f"Time: about {duration(known.seconds)} on {known.device}, {said}.")


@app.command()
def estimate(name: str, measure: Annotated[bool, typer.Option("--measure", help="Try three updates on the device itself.")] = False,
             data: DataOption = None, set_: SetOption = [], json: JsonOption = False, workspace: WorkspaceOption = None) -> None:  # noqa: B006
    """Say what a training will take: updates, exposures, tokens, snapshots, disk, memory by part, time.

    Example: sweetspot recipe estimate identity-lesson-cpu --data alex --measure
    """
    place = Workspace.open(workspace)
    recipe = adapted(find_recipe(place, name), data, set_)
    if measure:
        follow(start_trial(place, recipe), is_silent=json)
    known = forecast(place, recipe)
    if json:
        print_json(_forecast_json(known))
    else:
        _print_forecast(recipe, known)


@app.command()
def fit(name: str, apply: Annotated[bool, typer.Option("--apply", help="Write the proposal into the recipe.")] = False,
        data: DataOption = None, set_: SetOption = [], json: JsonOption = False, workspace: WorkspaceOption = None) -> None:  # noqa: B006
    """Propose rows at a time and recomputed activations for this machine; the effective batch stays the same.

    Example: sweetspot recipe fit mine --apply
    """
    place = Workspace.open(workspace)
    recipe = adapted(find_recipe(place, name), data, set_)
    found = propose_fit(place, recipe)
    path = save_recipe(place, name, change_recipe(recipe, found.changes)) if apply and found.changes else None
    if json:
        print_json({"changes": found.changes, "rows": found.rows, "accumulated": found.accumulated, "memory_bytes": found.memory_bytes,
                    "free_bytes": found.free_bytes, "gain": found.gain, "notes": [str(note) for note in found.notes],
                    "path": path and str(path)})
        return
    say(f"{found.rows} rows at a time, {found.accumulated} times an update: about {found.memory_bytes / 1e9:.1f} of "
        f"{found.free_bytes / 1e9:.1f} GB.")
    for field, value in found.changes.items():
        say(f"  {field}: {value}")
    if found.gain is not None and found.is_worth_it:
        say(f"About {found.gain:.1f} times as fast, by arithmetic; the updates are the same.")
    elif not found.changes:
        say("Nothing to change.")
    for note in found.notes:
        say(str(note))
    if path is not None:
        say(f"Written to {path}.")


@app.command()
def show(name: str, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Print a recipe with every field explained.

    Example: sweetspot recipe show identity-lesson-cpu
    """
    recipe = find_recipe(Workspace.open(workspace), name)
    if json:
        print_json(recipe.model_dump())
    else:
        say(dump_recipe(recipe))


@app.command()
def diff(first: str, second: str, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show the fields in which two recipes differ, and no others.

    Example: sweetspot recipe diff identity-lesson-cpu identity-lesson-replay
    """
    place = Workspace.open(workspace)
    changes = diff_recipes(find_recipe(place, first), find_recipe(place, second))
    if json:
        print_json({"changes": [list(change) for change in changes]})
    elif not changes:
        say("They say the same.")
    else:
        print_table(["field", first, second], [[change.path, value_text(change.a), value_text(change.b)] for change in changes])


@app.command("import-xtuner")
def import_xtuner(config: Annotated[Path, typer.Argument(help="An XTuner config, a .py file; it is read, never run.")],
                  name: Annotated[str | None, typer.Option(help="What to call the recipe; the config's own name if left out.")] = None,
                  gpus: Annotated[int | None, typer.Option(min=1, help="GPUs that XTuner would use; from the file's name, else 1.")] = None,
                  data: Annotated[str | None, typer.Option("--data", help="Dataset to use instead of those the config names.")] = None,
                  json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Make a recipe of an XTuner config, and say what became of each setting.

    Example: sweetspot recipe import-xtuner internlm2_chat_1_8b_qlora_alpaca_e3_copy.py --data alex
    """
    place = Workspace.open(workspace)
    imported = import_file(config, gpus, place, data)
    path = save_imported(place, imported, name)
    if json:
        print_json({"name": path.stem, "path": str(path), "recipe": imported.recipe.model_dump(), "questions": imported.questions,
                    "data": [asdict(part) for part in imported.data],
                    **{kind: [{"key": note.key, "field": note.field, "text": str(note.text)} for note in imported.of_kind(kind)]
                       for kind in KINDS}})
    else:
        _print_imported(imported)
        say(f"Written to {path}. Next: sweetspot recipe check {path.stem}")


_IMPORT_TITLES = {"mapped": "As it was", "changed": "Said differently", "left_out": "Not taken over", "not_run": "Not run"}


def _print_imported(imported: ImportedConfig) -> None:
    for kind in KINDS:
        notes = imported.of_kind(kind)
        if notes:
            say(f"{_IMPORT_TITLES[kind]}:")
        for note in notes:
            say(f"  {note.key}{f' -> {note.field}' if note.field else ''}: {' '.join(str(note.text).split())}")


def adapted(recipe: Recipe, dataset: str | None, settings: list[str]) -> Recipe:
    """A recipe with the command line's changes: `--data` for every source, then each `--set field=value`."""
    sources = range(len(recipe.data.sources)) if dataset else ()
    changes = {f"data.sources[{index}].dataset": dataset for index in sources} | settings_of(settings)
    return change_recipe(recipe, changes, "--set") if changes else recipe


def settings_of(settings: list[str]) -> dict[str, str]:
    """`["schedule.updates=4"]` -> `{"schedule.updates": "4"}`."""
    changes = {}
    for setting in settings:
        field, separator, value = setting.partition("=")
        if not separator:
            raise typer.BadParameter(f"{setting!r} is not field=value", param_hint="--set")
        changes[field.strip()] = value.strip()
    return changes
