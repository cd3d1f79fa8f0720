"""`sweetspot publish`: a model to the Hugging Face hub or to ModelScope, with a card that says where it comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from core.convert.publish_job import publish_job_for
from core.jobs.launch import start_job
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, confirm, follow, print_json, print_table, say


def publish(model: Annotated[str, typer.Argument(help="A merged model, or a checkpoint such as RUN@pick.")],
            repository: Annotated[str, typer.Argument(help="org/name on the hub.")],
            hub: Annotated[str, typer.Option(help="huggingface or modelscope.")] = "huggingface",
            public: Annotated[bool, typer.Option("--public", help="For everybody to see; private if left out.")] = False,
            licence: Annotated[str | None, typer.Option(help="As the hubs spell it, such as apache-2.0.")] = None,
            dry_run: Annotated[bool, typer.Option("--dry-run", help="Only write the folder that would be sent.")] = False,
            out: Annotated[str | None, typer.Option(help="Where the folder of a dry run goes.")] = None,
            yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
            json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Publish a model with a card that tells its base, data, recipe and verdict.

    The token is that of `hf auth login` or HF_TOKEN, for ModelScope of its own login or MODELSCOPE_API_TOKEN; never an argument.

    Example: sweetspot publish alex my-name/alex-assistant --dry-run
    """
    job = publish_job_for(Workspace.open(workspace), model, repository, hub, public=public, dry_run=dry_run, licence=licence, out=out)
    if not dry_run and not yes:
        confirm(f"Send {model} to {hub} as {repository}, {'for everybody to see' if public else 'private'}?")
    start_job(job)
    result = follow(job, is_silent=json).result or {}
    if json:
        print_json(result)
    elif result:
        print_table(["file", "MB"], [[name, size / 1e6] for name, size in result["files"].items()])
        say(f"Sent: {result['address']}" if result["sent"] else
            f"Nothing was sent. {repository} would get these files ({result['bytes'] / 1e6:.0f} MB); read the card: "
            f"{result['folder']}/README.md")
