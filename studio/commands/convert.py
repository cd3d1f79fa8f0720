"""`sweetspot convert ...`: from XTuner, and into other files."""

from __future__ import annotations

from typing import Annotated

import typer

from core.convert.start import start_gguf, start_split, start_xtuner
from core.words import Text
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, follow, print_json, say

app = typer.Typer(no_args_is_help=True, help="Convert: XTuner's checkpoints, shards of another size, GGUF.")


@app.command()
def xtuner(source: Annotated[str, typer.Argument(help="An iter_N.pth (a file, or DeepSpeed's folder), or a work folder with several.")],
           name: Annotated[str, typer.Argument(help="What to call the run that they become.")],
           base: Annotated[str, typer.Option(help="The base model that they were trained on.")],
           config: Annotated[str | None, typer.Option(help="The config that trained them, a .py file; it is read, never run.")] = None,
           alpha: Annotated[int | None, typer.Option(min=1, help="Alpha of the adapter, where no config says it.")] = None,
           data: Annotated[str | None, typer.Option(help="Dataset whose probes shall judge them.")] = None,
           json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Make a run of XTuner's checkpoints, to judge, chat with and merge like any other. Nothing in them is executed.

    Example: sweetspot convert xtuner work_dirs/internlm2_chat_1_8b_qlora_alpaca_e3_copy course --base internlm2-chat-1.8b --data alex
    """
    job = start_xtuner(Workspace.open(workspace), source, name, base, config, alpha, data)
    result = follow(job, is_silent=json).result or {}
    notes = [str(Text.from_json(note)) for note in result.get("notes", [])]
    if json:
        print_json(result | {"notes": notes})
        return
    for note in notes:
        say(f"Note: {note}.")
    if result:
        steps = ", ".join(map(str, result["steps"]))
        say(f"{result['run']}: steps {steps}, rank {result['rank']}, alpha {result['alpha']}.")
        say(f"Chat with it: sweetspot chat {base} {name}@last    Judge it: sweetspot judge {name}")


@app.command()
def split(model: Annotated[str, typer.Argument(help="A model: a name, a folder or a hub id.")],
          name: Annotated[str, typer.Argument(help="Name of the new model.")],
          max_shard_size: Annotated[str, typer.Option(help="Largest file, such as 2GB or 500MB.")] = "2GB",
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Write a model anew in files of another size; its values stay as they are.

    Example: sweetspot convert split alex alex-small-files --max-shard-size 500MB
    """
    job = start_split(Workspace.open(workspace), model, name, max_shard_size)
    result = follow(job, is_silent=json).result or {}
    if json:
        print_json(result)
    elif result:
        say(f"{result['folder']}: {len(result['files'])} files.")


@app.command()
def gguf(model: Annotated[str, typer.Argument(help="A merged or added model; merge a checkpoint first.")],
         to: Annotated[str, typer.Option(help="f16, q8_0, bf16 or f32.")] = "q8_0",
         out: Annotated[str | None, typer.Option(help="The new folder; exports/NAME-FORMAT in the workspace if left out.")] = None,
         json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Write a model as a GGUF file for llama.cpp, with a Modelfile for Ollama; it is loaded back and compared before it is kept.

    Example: sweetspot convert gguf alex --to q8_0
    """
    job = start_gguf(Workspace.open(workspace), model, to, out)
    result = follow(job, is_silent=json).result or {}
    notes = [str(Text.from_json(note)) for note in result.get("notes", [])]
    if json:
        print_json(result | {"notes": notes})
    elif result:
        for note in notes:
            say(f"Note: {note}")
        check = result["check"]
        say(f"{result['file']}: {result['bytes'] / 1e6:.0f} MB.")
        say(f"Not compared: {check['skipped']}." if check["skipped"] else
            f"Loaded back: {check['prompts']} prompts, logits within {check['largest_difference']:.2g} (they spread by "
            f"{check['spread']:.2g}), the same first choice at {check['same_choice']:.1%} of the positions.")
        if result["modelfile"]:
            say(f"With Ollama: cd {result['folder']} && ollama create {model} -f Modelfile")
