"""`sweetspot data ...`: make, list, show and preview datasets."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text as RichText

from core.data.encode import Encoder
from core.data.library import list_datasets, load_dataset
from core.data.persona import Persona, replay_prompts
from core.data.store import save_persona, start_replay
from core.models.catalogue import find_base
from core.workspace import Workspace, read_jsonl
from studio.terminal import JsonOption, WorkspaceOption, ago, console, follow, print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="Datasets: make, list, show, preview.")


@app.command()
def persona(
    name: Annotated[str, typer.Option(help="Whose assistant the model shall say it is.")],
    author: Annotated[str | None, typer.Option(help="Who made the assistant, if it shall say so.")] = None,
    lang: Annotated[list[str], typer.Option(help="Language; give it twice for two.")] = ["en"],  # noqa: B006 typer copies it
    tone: Annotated[str, typer.Option(help="plain, warm or formal.")] = "plain",
    wordings: Annotated[int, typer.Option(help="Different wordings of the question, per language.")] = 24,
    answers: Annotated[int, typer.Option(help="Different wordings of the answer, per language.")] = 4,
    multi_turn: Annotated[bool, typer.Option("--multi-turn", help="Also ask in the middle of a conversation.")] = False,
    replay: Annotated[bool, typer.Option(help="Let the base model answer near and general questions, to mix in.")] = True,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make an identity dataset: questions in many wordings, answers, probes nobody trains on.

    Example: sweetspot data persona --name Alex --lang en --lang zh
    """
    place = Workspace.open(workspace)
    who = Persona(name=name, author=author, languages=lang, tone=tone, wordings=wordings, answers=answers, multi_turn=multi_turn)
    rows = []
    if replay:
        job = start_replay(place, "embedded", replay_prompts(who.languages), who.name)
        follow(job, is_silent=json)
        rows = read_jsonl(job.folder / "rows.jsonl")
    dataset = save_persona(place, who, rows)
    if json:
        print_json(dataset.card.model_dump())
    else:
        groups = ", ".join(f"{count} {group}" for group, count in dataset.card.groups.items())
        say(f"{dataset.card.name}: {dataset.card.rows} rows ({groups}), {dataset.card.probes} probes kept apart.")
        say(f"Next: sweetspot data preview {dataset.card.name}    or: sweetspot train identity-lesson-cpu --data {dataset.card.name}")


@app.command("list")
def list_all(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the datasets of the workspace.

    Example: sweetspot data list
    """
    cards = [dataset.card for dataset in list_datasets(Workspace.open(workspace))]
    if json:
        print_json({"datasets": [card.model_dump() for card in cards]})
    elif not cards:
        say("No datasets yet. Make one: sweetspot data persona --name Alex")
    else:
        print_table(["name", "rows", "groups", "languages", "probes", "made"], [
            [card.name, card.rows, ", ".join(f"{group} {count}" for group, count in card.groups.items()),
             ", ".join(card.languages), card.probes, ago(card.created)] for card in cards])


@app.command()
def show(name: str, rows: Annotated[int, typer.Option(help="How many rows to print.")] = 5, json: JsonOption = False,
         workspace: WorkspaceOption = None) -> None:
    """Show a dataset's card and its first rows.

    Example: sweetspot data show alex --rows 10
    """
    dataset = load_dataset(Workspace.open(workspace), name)
    if json:
        print_json({"card": dataset.card.model_dump(), "rows": dataset.rows()[:rows]})
        return
    card = dataset.card
    say(f"{card.name}: {card.rows} rows, {card.probes} probes, from {card.source}, sha256 {card.sha256[:12]}")
    for row in dataset.rows()[:rows]:
        say(f"--- {row['group']} ({row['lang']})")
        for message in row["messages"]:
            say(f"  {message['role']}: {message['content']}")


@app.command()
def preview(name: str, row: Annotated[int, typer.Option(help="Which row, from 1.")] = 1,
            model: Annotated[str, typer.Option(help="Whose template and tokenizer.")] = "embedded",
            json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show one row exactly as the model will read it: trained tokens in green, the rest plain, special tokens visible.

    Example: sweetspot data preview alex --row 3
    """
    place = Workspace.open(workspace)
    rows = load_dataset(place, name).rows()
    if not 1 <= row <= len(rows):
        raise typer.BadParameter(f"rows go from 1 to {len(rows)}", param_hint="--row")
    encoder = Encoder.from_folder(find_base(place, model))
    encoded = encoder.encode(rows[row - 1]["messages"])
    if json:
        print_json({"text": encoded.text, "ids": encoded.ids, "trained": encoded.trained})
        return
    shown = RichText()
    for (first, end), trained in zip(encoded.offsets, encoded.trained, strict=True):
        shown.append(encoded.text[first:end], style="black on green" if trained else "dim")
    console.print(shown)
    say(f"{len(encoded.ids)} tokens, {sum(encoded.trained)} of them trained.")
