"""`sweetspot models ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from core.errors import StudioError
from core.jobs.folder import create_job, new_job_id
from core.jobs.launch import start_job
from core.machine import read_gpus
from core.models.add import add_model_job
from core.models.catalogue import find_base, find_local_base, list_models
from core.models.delete import delete_model, find_deletable
from core.models.describe import describe_model
from core.models.embedded import EMBEDDED_NAME, embedded_folder, is_prepared
from core.models.gguf_reading import read_gguf_header
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, confirm, follow, print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="Models: list, add, show, delete.")


@app.command("list")
def list_all(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the models of the workspace.

    Example: sweetspot models list
    """
    found = list_models(Workspace.open(workspace))
    if json:
        print_json({"models": [{"name": name, "folder": str(folder)} | (
            {"problem": str(header.problem)} if isinstance(header, StudioError) else header.model_dump())
            for name, folder, header in found]})
    elif not found:
        say("No models yet. Prepare the embedded one: sweetspot models add embedded")
    else:
        print_table(["name", "parameters", "format", "context", "note"], [
            [name, "-", "-", "-", str(header.problem)] if isinstance(header, StudioError) else
            [name, f"{header.parameters / 1e6:.0f} M", header.dtype, header.context_tokens,
             "" if header.has_chat_template else "no chat template"] for name, folder, header in found])


@app.command()
def add(source: Annotated[str, typer.Argument(help="embedded, a folder, a .gguf file, a hub id (org/name), or modelscope:org/name.")],
        name: Annotated[str | None, typer.Option(help="What to call it; else by its folder or id.")] = None,
        copy: Annotated[bool, typer.Option("--copy", help="Copy the files into the workspace instead of linking their folder.")] = False,
        json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Add a model: it is checked, then linked; a GGUF file and an InternLM2 are converted. No code of a model's own is run.

    Example: sweetspot models add Qwen/Qwen2.5-0.5B-Instruct
    """
    place = Workspace.open(workspace)
    if source == "embedded":
        if not is_prepared(place):
            job = create_job(place.jobs / new_job_id("prepare", "embedded"), "prepare", {})
            start_job(job)
            follow(job, is_silent=json)
        result = {"name": EMBEDDED_NAME, "folder": str(embedded_folder(place))}
    else:
        job = add_model_job(place, source, name, copy)
        start_job(job)
        result = follow(job, is_silent=json).result or {}
    if json:
        print_json(result)
    elif result:
        say(f"{result['name']} is ready in {result['folder']}")
        say(f"See what it is: sweetspot models show {result['name']}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A model of the workspace, a folder, or a .gguf file.")], json: JsonOption = False,
         workspace: WorkspaceOption = None) -> None:
    """Show what a model's folder says about itself, and what memory it needs, without loading it.

    Example: sweetspot models show embedded
    """
    place = Workspace.open(workspace)
    if name.lower().endswith(".gguf"):
        facts = read_gguf_header(Path(name).expanduser())
    else:
        facts = describe_model(_folder_here(place, name), "cuda" if read_gpus() else "cpu")
    if json:
        print_json(facts)
    else:
        print_table(["fact", "value"], [row for key, value in facts.items() for row in _fact(key, value)])


def _folder_here(place: Workspace, name: str) -> Path:
    """A model's folder, without fetching anything: a look must not cost a download."""
    folder = find_local_base(place, name)
    if folder is None and not name.startswith("embedded"):
        raise StudioError("The model {name} is not on this machine yet.", "Fetch it first: `sweetspot models add {name}`.", name=name)
    return folder or find_base(place, name)


def _fact(key: str, value: Any) -> list[list[Any]]:
    """A fact as rows for people: bytes as GB, a dict as a row each."""
    if isinstance(value, dict):
        return [row for part, inner in value.items() for row in _fact(f"{key} ({part})", inner)]
    if key.startswith("memory_") or key.endswith("_bytes"):
        return [[key, f"{value / 1e9:.2f} GB"]]
    return [[key, ", ".join(map(str, value)) if isinstance(value, list) else value]]


@app.command()
def delete(name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, json: JsonOption = False,
           workspace: WorkspaceOption = None) -> None:
    """Delete a model from the workspace; one that a run or a job needs is kept.

    Example: sweetspot models delete alex --yes
    """
    place = Workspace.open(workspace)
    find_deletable(place, name)
    if not yes:
        confirm(f"Delete the model {name}?")
    delete_model(place, name)
    if json:
        print_json({"deleted": name})
    else:
        say(f"Deleted {name}.")
