"""`sweetspot models ...`."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from core.data.store import free_name
from core.errors import StudioError
from core.jobs.folder import create_job, new_job_id
from core.jobs.launch import start_job
from core.models.catalogue import find_base, list_models
from core.models.embedded import EMBEDDED_NAME, embedded_folder, is_prepared
from core.models.header import read_header
from core.models.internlm2 import add_internlm2, is_internlm2
from core.workspace import Workspace, check_name, slug
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
def add(source: Annotated[str, typer.Argument(help="embedded, a folder, or a hub id.")],
        name: Annotated[str | None, typer.Option(help="Of a model that is converted (InternLM2); else its folder's.")] = None,
        json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Prepare the embedded model, fetch one from the hub, or convert an InternLM2 to Llama's layout.

    Example: sweetspot models add embedded
    """
    place = Workspace.open(workspace)
    if source == "embedded" and not is_prepared(place):
        job = create_job(place.jobs / new_job_id("prepare", "embedded"), "prepare", {})
        start_job(job)
        follow(job, is_silent=json)
    folder = embedded_folder(place) if source == "embedded" else find_base(place, source)
    if is_internlm2(folder):
        job = add_internlm2(place, folder, name or free_name(place.models, slug(folder.name) or "internlm2"))
        start_job(job)
        follow(job, is_silent=json)
        source = job.spec()["name"]
        folder = place.models / source
    if json:
        print_json({"name": EMBEDDED_NAME if source == "embedded" else source, "folder": str(folder)})
    else:
        say(f"{source} is ready in {folder}")


@app.command()
def show(name: str, json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show what a model's folder says about itself, without loading it.

    Example: sweetspot models show embedded
    """
    folder = find_base(Workspace.open(workspace), name)
    header = read_header(folder)
    if json:
        print_json({"folder": str(folder)} | header.model_dump())
    else:
        print_table(["fact", "value"], [["folder", folder], *header.model_dump().items()])


@app.command()
def delete(name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, json: JsonOption = False,
           workspace: WorkspaceOption = None) -> None:
    """Delete a model from the workspace.

    Example: sweetspot models delete alex --yes
    """
    folder = Workspace.open(workspace).models / check_name(name, "model")
    if not folder.is_dir():
        raise StudioError("No model is called {name}.", "`sweetspot models list` shows the models that are here.", name=name)
    if not yes:
        confirm(f"Delete the model {name}?")
    shutil.rmtree(folder)
    if json:
        print_json({"deleted": name})
    else:
        say(f"Deleted {name}.")
