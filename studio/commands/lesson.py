"""`sweetspot lesson`: from a name to a chosen, merged, talking model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from core.data.persona import Persona
from core.lesson import LESSON_WORDINGS, PART_TITLES, read_lesson, start_lesson
from core.runs import find_run
from core.workspace import Workspace
from studio.commands.recipe import SetOption, settings_of
from studio.tables import print_scores, print_verdict
from studio.terminal import JsonOption, WorkspaceOption, duration, follow, print_json, print_table, say


def lesson(
    name: Annotated[str, typer.Option(help="Whose assistant the model shall say it is.")],
    lang: Annotated[str, typer.Option(help="Language of questions and answers: en or zh.")] = "en",
    author: Annotated[str | None, typer.Option(help="Who made the assistant, if it shall say so.")] = None,
    remedy: Annotated[bool, typer.Option("--remedy", help="Also train with the base model's own answers mixed in, and compare.")] = False,
    set_: SetOption = [],  # noqa: B006
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Teach the embedded model a name, watch it collapse, pick the checkpoint before that, merge it, and talk to it.

    Example: sweetspot lesson --name Alex
    """
    place = Workspace.open(workspace)
    persona = Persona(name=name, author=author, languages=[lang], wordings=LESSON_WORDINGS)
    job = start_lesson(place, persona, remedy, settings_of(set_))
    if not json:
        say(f"The lesson for {name} runs by itself (job {job.id}); closing this window does not stop it.")
    state = follow(job, is_silent=json)
    summary = state.result or {}
    if json:
        print_json(summary)
    elif not summary:
        say("The lesson was stopped; what was done so far is kept.")
    else:
        _print_lesson(place, summary, lang)
        _print_times(read_lesson(job))


def _print_lesson(place: Workspace, summary: dict[str, Any], language: str) -> None:
    if "without_remedy" in summary:
        print_scores(find_run(place, summary["without_remedy"]["run"]), "The name alone")
        print_verdict(find_run(place, summary["without_remedy"]["run"]), language)
    print_scores(find_run(place, summary["run"]), "With the base model's own answers mixed in" if "without_remedy" in summary else None)
    print_verdict(find_run(place, summary["run"]), language)
    merged = summary["merged"]
    say(f"\nMerged as {summary['model']}: {'the same answers' if merged['same_answers'] else 'NOT the same answers'} as the adapter on "
        f"{merged['answers_compared']} probes, logits within {merged['max_logit_difference']:.1e}, "
        f"{merged['tensors_changed']} tensors changed.")
    asked = summary["questions"]
    titles = ["question", "base", f"pick (step {summary['pick']['step']})", f"last (step {summary['last']['step']})", "merged"]
    print_table(titles, [[question, *answers] for question, answers in zip(asked["questions"], asked["answers"], strict=True)],
                title="The same questions, asked of all")
    say(f"Go on: sweetspot chat embedded {summary['run']}@pick {summary['model']}    or: sweetspot studio")


def _print_times(record: dict[str, Any]) -> None:
    parts = [f"{PART_TITLES[part]} {duration(entry['seconds'])}" for part, entry in record["parts"].items() if "seconds" in entry]
    total = sum(entry.get("seconds", 0) for entry in record["parts"].values())
    say(f"Took {duration(total)}: {', '.join(parts)}.")
