"""`sweetspot data ...`: make, import, check, mix, show and export datasets."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text as RichText

from core.data.encode import Encoder
from core.data.export import export_rows
from core.data.findings import Finding
from core.data.fixes import fix_rows
from core.data.hold_out import hold_out_rows
from core.data.import_job import copy_new, first_records, rejected_records, start_import
from core.data.importing import Reading
from core.data.library import Dataset, list_datasets, load_dataset, update_rows
from core.data.lint import LENGTH_LIMIT, Plan, lint
from core.data.measure import measure_dataset
from core.data.mix import Part, mix_datasets, token_shares, weighed_by_tokens
from core.data.persona import ONE_PAIR_COPIES, Persona, replay_prompts
from core.data.statistics import packing, packs_of, statistics
from core.data.store import save_one_pair, save_persona, start_reminders, start_replay, start_replay_dataset
from core.errors import StudioError
from core.models.catalogue import find_base
from core.words import Text
from core.workspace import Workspace, read_jsonl
from studio.terminal import JsonOption, WorkspaceOption, ago, console, follow, print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="Datasets: make, import, check, mix, show, export.")


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
    preset: Annotated[str, typer.Option(help="many-wordings, or one-pair-repeated: the first lesson of many courses, which overfits.")]
        = "many-wordings",
    copies: Annotated[int, typer.Option(help="Of the one pair, with the preset one-pair-repeated.")] = ONE_PAIR_COPIES,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make an identity dataset: questions in many wordings, answers, probes nobody trains on.

    Example: sweetspot data persona --name Alex --lang en --lang zh
    """
    place = Workspace.open(workspace)
    who = Persona(name=name, author=author, languages=lang, tone=tone, wordings=wordings, answers=answers, multi_turn=multi_turn)
    if preset not in ("many-wordings", "one-pair-repeated"):
        raise typer.BadParameter(f"{preset!r} is neither many-wordings nor one-pair-repeated", param_hint="--preset")
    if preset == "one-pair-repeated":
        _say_made(save_one_pair(place, who, copies), json)
        return
    rows = []
    if replay:
        job = start_replay(place, "embedded", replay_prompts(who.languages), who.name)
        follow(job, is_silent=json)
        rows = read_jsonl(job.folder / "rows.jsonl")
    _say_made(save_persona(place, who, rows), json)


def _say_made(dataset: Dataset, json: bool) -> None:
    if json:
        print_json(dataset.card.model_dump())
        return
    groups = ", ".join(f"{count} {group}" for group, count in dataset.card.groups.items())
    say(f"{dataset.card.name}: {dataset.card.rows} rows ({groups}), {dataset.card.probes} probes kept apart.")
    say(f"Next: sweetspot data preview {dataset.card.name}    or: sweetspot train identity-lesson-cpu --data {dataset.card.name}")


@app.command()
def replay(name: str, lang: Annotated[list[str], typer.Option(help="Language; give it twice for two.")] = ["en"],  # noqa: B006
           near: Annotated[int, typer.Option(help="Questions that only look like identity, per language.")] = 60,
           general: Annotated[int, typer.Option(help="Other questions, per language.")] = 300,
           model: Annotated[str, typer.Option(help="Who answers.")] = "embedded",
           json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Make a dataset of the base model's own answers to questions that are not about identity; held-out ones become its probes.

    Example: sweetspot data replay everyday --general 100
    """
    place = Workspace.open(workspace)
    job = start_replay_dataset(place, name, lang, model, near, general)
    state = follow(job, is_silent=json)
    if state.state == "stopped" or not state.result:
        raise StudioError("The collecting was stopped; nothing was kept.", "Start it again when you like.")
    _say_made(load_dataset(place, state.result["dataset"]), json)


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
        print_json({"card": dataset.card.model_dump(), "rows": dataset.first_rows(rows)})
        return
    card = dataset.card
    say(f"{card.name}: {card.rows} rows, {card.probes} probes, from {card.source}, sha256 {card.sha256[:12]}")
    for row in dataset.first_rows(rows):
        say(f"--- {row['group']} ({row.get('lang', 'en')})")
        if "text" in row:
            say(f"  {row['text']}")
        for message in row.get("messages", []):
            say(f"  {message['role']}: {message['content']}")
            for call in message.get("tool_calls", []):
                say(f"    calls {call['function']['name']} {dumps(call['function']['arguments'], ensure_ascii=False)}")
        for message in row.get("rejected", []):
            say(f"  rejected: {message['content']}")


@app.command()
def preview(name: str, row: Annotated[int, typer.Option(help="Which row, from 1.")] = 1,
            model: Annotated[str, typer.Option(help="Whose template and tokenizer.")] = "embedded",
            max_length: Annotated[int, typer.Option(help="Tokens at which a training cuts a row, or packs rows.")] = LENGTH_LIMIT,
            json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show one row exactly as the model will read it: trained tokens in green, the rest plain, special tokens visible.

    It also says what is cut off, and with which rows it shares a sequence when rows are packed.

    Example: sweetspot data preview alex --row 3
    """
    place = Workspace.open(workspace)
    dataset = load_dataset(place, name)
    if not 1 <= row <= dataset.card.rows:
        raise typer.BadParameter(f"rows go from 1 to {dataset.card.rows}", param_hint="--row")
    encoder = Encoder.from_folder(find_base(place, model))
    encoded = encoder.encode_row(dataset.row(row - 1), max_length=max_length)
    packs = packs_of(packing(measure_dataset(dataset, encoder), max_length), row - 1)
    shared = [span.row + 1 for pack in packs[:1] for span in pack if span.row != row - 1]
    if json:
        print_json({"text": encoded.text, "ids": encoded.ids, "trained": encoded.trained, "cut_tokens": encoded.cut_tokens,
                    "packs": [[{"row": span.row + 1, "start": span.start, "end": span.end} for span in pack] for pack in packs]})
        return
    shown = RichText()
    for (first, end), trained in zip(encoded.offsets, encoded.trained, strict=True):
        shown.append(encoded.text[first:end], style="black on green" if trained else "dim")
    console.print(shown)
    say(f"{len(encoded.ids)} tokens, {sum(encoded.trained)} of them trained; {encoded.cut_tokens} cut off at {max_length}.")
    if packs:
        used = sum(span.end - span.start for span in packs[0])
        say(f"Packed, it shares a sequence with {'rows ' + ', '.join(map(str, shared)) if shared else 'no other row'} "
            f"({used} of {max_length} tokens).")


@app.command()
def stats(name: str, model: Annotated[str, typer.Option(help="Whose template and tokenizer.")] = "embedded",
          max_length: Annotated[int, typer.Option(help="Tokens of a sequence, for the packing.")] = LENGTH_LIMIT,
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what a dataset is made of: lengths, turns, languages, shares of tokens, a histogram, and how it packs.

    Example: sweetspot data stats alex
    """
    place = Workspace.open(workspace)
    dataset = load_dataset(place, name)
    found = statistics(dataset, Encoder.from_folder(find_base(place, model)))
    packed = packing(found.measure, max_length)
    if json:
        print_json({"rows": found.rows, "rows_measured": len(found.measure.places), "kinds": found.kinds, "turns": found.turns,
                    "middle_tokens": found.middle, "longest_tokens": found.longest,
                    "languages": [share.__dict__ for share in found.languages], "groups": [share.__dict__ for share in found.groups],
                    "histogram": [bar.__dict__ for bar in found.histogram],
                    "packing": {"max_length": max_length, "packs": len(packed.packs), "filled": round(packed.filled, 4),
                                "filled_alone": round(packed.filled_alone, 4)}})
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    say(f"{name}: {found.rows} rows ({kinds}); turns: {', '.join(f'{turns} in {count}' for turns, count in found.turns.items()) or '-'}")
    if found.measure.is_sample:
        say(f"Tokens of {len(found.measure.places)} rows, evenly spaced:")
    for title, shares in (("group", found.groups), ("language", found.languages)):
        print_table([title, "rows", "% of rows", "tokens", "% of tokens", "% of trained tokens"], [
            [share.name, share.rows, share.row_share, share.tokens, share.token_share, share.trained_share] for share in shares])
    most = max(bar.rows for bar in found.histogram)
    for bar in found.histogram:
        say(f"{bar.above + 1:>7} to {bar.upto:>6} tokens {bar.rows:>8}  {'#' * round(40 * bar.rows / max(1, most))}")
    say(f"Middle row {found.middle} tokens, longest {found.longest}. Packed into sequences of {max_length}: {len(packed.packs)} sequences, "
        f"{packed.filled:.0%} filled; one row each: {packed.filled_alone:.0%}.")


@app.command("import")
def import_source(
        source: Annotated[str, typer.Argument(help="A file, a folder of data files, or owner/name on the hub.")], name: str,
        layout: Annotated[str | None, typer.Option(help="Read every record as this layout, as in oasst1; else each is recognised.")] = None,
        column: Annotated[list[str], typer.Option(help="Which column is what, as in question=frage; may be repeated.")] = [],  # noqa: B006
        group: Annotated[str, typer.Option(help="Group of rows that name none: identity, near or general.")] = "general",
        subset: Annotated[str | None, typer.Option(help="Configuration of a set of the hub.")] = None,
        split: Annotated[str | None, typer.Option(help="Split of a set of the hub; left out, train.")] = None,
        json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Make a dataset out of JSON, JSON Lines, CSV, Parquet, YAML, plain text, or a set of the hub.

    What a record is, is told by its fields: OpenAI `messages`, ShareGPT `conversations`, XTuner `conversation`, Alpaca
    `instruction`/`input`/`output`, a question with an answer, `chosen`/`rejected`, or a `text`. Every record is accounted for: those
    that cannot be used are kept with the reason, see `sweetspot data rejected`.

    Layouts by name: alpaca, alpaca_zh, arxiv, code_alpaca, tiny_codes, colors, crime_kg_assitan, law_reference, medical, sql, openorca,
    stack_exchange, default, wizardlm, oasst1, openai, pretrain, llava, llava_image_only, msagent_react, moss_sft, preference, sharegpt,
    xtuner, question_answer, prompt_completion.

    Example: sweetspot data import alpaca.json everyday
    """
    place = Workspace.open(workspace)
    reading = Reading(layout, _values(column, "--column"), group)
    job = start_import(place, source, name, reading, subset=subset, split=split)
    state = follow(job, is_silent=json)
    if state.state == "stopped":
        raise StudioError("The import was stopped; nothing was kept.", "Start it again when you like.")
    card = load_dataset(place, name).card
    made = card.made_with
    if json:
        print_json({"card": card.model_dump(), "import": made})
        return
    layouts = ", ".join(f"{layout} {count}" for layout, count in made["layouts"].items())
    say(f"{name}: {card.rows} rows from {made['read']} records ({made['form']}, {made['encoding']}: {layouts}).")
    say(f"{made['imported']} taken over, {made['repaired']} repaired, {made['rejected']} left out.")
    for kind, key, count in (("repaired", "repairs", made["repaired"]), ("left out", "refusals", made["rejected"])):
        for note in made[key][:5]:
            say(f"  {kind}: {Text.from_json(note['place'])}: {Text.from_json(note['reason'])}")
        if count > 5:
            say(f"  ... and {count - 5} more {kind}")
    if made["rejected"]:
        say(f"What was left out: sweetspot data rejected {name}")
    say(f"Next: sweetspot data lint {name}")


@app.command()
def rejected(name: str, to: Annotated[str | None, typer.Option(help="Copy them to this new file, as JSON Lines.")] = None,
             rows: Annotated[int, typer.Option(help="How many to print.")] = 20, json: JsonOption = False,
             workspace: WorkspaceOption = None) -> None:
    """Show the records that an import could not use: their place, the reason, and the record itself.

    Example: sweetspot data rejected everyday --to left-out.jsonl
    """
    place = Workspace.open(workspace)
    path = rejected_records(place, name)
    total = load_dataset(place, name).card.made_with.get("rejected", 0) if path else 0
    if to is not None and path is not None:
        copy_new(path, to)
    records = first_records(path, rows) if path else []
    if json:
        print_json({"rejected": total, "file": str(path) if path else None, "records": records})
    elif not records:
        say("Nothing was left out.")
    else:
        for record in records:
            shown = record["record"] if isinstance(record["record"], str) else dumps(record["record"], ensure_ascii=False)
            say(f"{record['place']}: {record['reason']}\n    {shown[:200]}")
        say(f"{len(records)} of {total} shown; all of them: {to or path}")


@app.command("lint")
def lint_rows(name: str, model: Annotated[str, typer.Option(help="Whose template and tokenizer.")] = "embedded",
              max_length: Annotated[int, typer.Option(help="Tokens at which a training cuts a row.")] = LENGTH_LIMIT,
              updates: Annotated[int, typer.Option(help="Updates of the training that is planned.")] = Plan.updates,
              batch: Annotated[int, typer.Option(help="Rows of one update.")] = Plan.effective_batch,
              fix: Annotated[list[str], typer.Option(help="Mend this finding, as in duplicates; may be repeated.")] = [],  # noqa: B006
              fill: Annotated[list[str], typer.Option(help="What stands for a placeholder, as in {{name}}=Alex; may be repeated.")] = [],  # noqa: B006
              json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what in a dataset will hurt the training, and mend it where asked.

    Example: sweetspot data lint mine --fix duplicates --fix placeholders --fill {{name}}=Alex
    """
    place = Workspace.open(workspace)
    dataset = load_dataset(place, name)
    encoder = Encoder.from_folder(find_base(place, model))
    rows, card = dataset.rows(), dataset.card

    def look() -> list[Finding]:
        return lint(rows, encoder, max_length, card.key_phrases, card.probes, Plan(updates, batch))

    findings, mended, is_reminded, is_held_out = look(), [], False, False
    for code in dict.fromkeys(fix):
        finding = next((finding for finding in findings if finding.code == code), None)
        if finding is not None and finding.fix == "add_replay":
            is_reminded = True
        elif finding is not None and finding.fix == "hold_out":
            is_held_out = True
        elif finding is not None:
            rows = fix_rows(rows, finding, _values(fill, "--fill"))
            mended.append(code)
            findings = look()
    if mended:
        dataset = update_rows(place, name, rows, card.sha256)
    if is_held_out:  # of the rows that were just saved
        hold_out_rows(place, name)
        dataset = load_dataset(place, name)
        rows, card = dataset.rows(), dataset.card
        findings, mended = look(), [*mended, "no_probes"]
    if is_reminded:  # a job, so it comes last: it adds to the rows that were just saved
        follow(start_reminders(place, name, model), is_silent=json)
        dataset = load_dataset(place, name)
        rows, card = dataset.rows(), dataset.card
        findings, mended = look(), [*mended, *(code for code in dict.fromkeys(fix) if code in ("no_near", "identity_share"))]
    if json:
        print_json({"rows": len(rows), "mended": mended, "findings": [
            {"code": finding.code, "level": finding.level, "text": str(finding.text), "fix": finding.fix,
             "rows": [place + 1 for place in finding.rows]} for finding in findings]})
        return
    if mended:
        say(f"Mended: {', '.join(mended)}; {name} has {dataset.card.rows} rows now.")
    if not findings:
        say("Nothing in it will hurt.")
    for finding in findings:
        say(f"{finding.level:8} {finding.code}: {finding.text}")
        if finding.rows:
            say(f"         rows {', '.join(str(place + 1) for place in finding.rows[:10])}{' ...' if len(finding.rows) > 10 else ''}")


@app.command()
def mix(items: Annotated[list[str], typer.Argument(metavar="DATASET=WEIGHT... NAME", help="Sources with weights, then the new name.")],
        rows: Annotated[int | None, typer.Option(help="Rows of the mixture; left out, as many as fit without using one twice.")] = None,
        seed: Annotated[int, typer.Option(help="Of choice and order.")] = 0,
        by: Annotated[str, typer.Option(help="What the weights are shares of: rows or tokens (trained ones).")] = "rows",
        model: Annotated[str, typer.Option(help="Whose tokenizer counts the tokens.")] = "embedded",
        json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Mix datasets into a new one that remembers its sources and their hashes; weights are shares of its rows, or of its tokens.

    Example: sweetspot data mix alex=1 everyday=1 alex-mixed
    """
    place = Workspace.open(workspace)
    *sources, name = items
    parts = [Part(dataset, _number(weight)) for dataset, weight in _values(sources, "DATASET=WEIGHT").items()]
    if by not in ("rows", "tokens"):
        raise typer.BadParameter(f"{by!r} is neither rows nor tokens", param_hint="--by")
    encoder = Encoder.from_folder(find_base(place, model))
    shares = token_shares(place, weighed_by_tokens(place, parts, encoder) if by == "tokens" else parts, encoder)
    dataset = mix_datasets(place, name, parts, rows, seed, encoder if by == "tokens" else None)
    if json:
        print_json({"card": dataset.card.model_dump(), "shares": [share.__dict__ for share in shares]})
        return
    used = {source["dataset"]: source["rows"] for source in dataset.card.made_with["sources"]}
    print_table(["source", "rows used", "share of rows", "share of trained tokens"], [
        [share.dataset, used[share.dataset], f"{share.row_share:.0%}", f"{share.trained_share:.0%}"] for share in shares])
    say(f"{name}: {dataset.card.rows} rows. Next: sweetspot data lint {name}")


@app.command()
def export(name: str, file: str,
           layout: Annotated[str, typer.Option(help="rows (everything), openai, sharegpt, alpaca or xtuner.")] = "rows",
           json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Write a dataset to a new file: .jsonl or .json in a layout that other tools read, .csv with question and answer.

    Example: sweetspot data export alex alex.jsonl --layout openai
    """
    count = export_rows(load_dataset(Workspace.open(workspace), name).each_row(), file, layout)
    if json:
        print_json({"file": str(Path(file).expanduser()), "rows": count, "layout": layout})
    else:
        say(f"{count} rows written to {file}.")


def _values(items: list[str], where: str) -> dict[str, str]:
    """`a=b` items as a dict; the first `=` divides."""
    pairs = [item.partition("=") for item in items]
    wrong = [item for item, (left, _, _) in zip(items, pairs, strict=True) if not left or "=" not in item]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} has no value; write NAME=VALUE", param_hint=where)
    return {left: right for left, _, right in pairs}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number", param_hint="DATASET=WEIGHT") from None
