"""`sweetspot merge`: an adapter, or several, joined with their base model into one ordinary model folder."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from core.jobs.launch import start_job
from core.merge.library import Merged
from core.merge.request import MergeRequest, merge_job_for, parse_size, parse_weights
from core.words import Text
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, follow, print_json, say


def merge(models: Annotated[list[str], typer.Argument(help="RUN@STEP, RUN@pick or RUN@last, *0.5 for half strength; one or several.")],
          name: Annotated[str, typer.Argument(help="Name of the merged model.")],
          strength: Annotated[float, typer.Option(help="How much of the adapter goes in, above 0 and at most 1.")] = 1.0,
          dtype: Annotated[str, typer.Option(help="auto (the base model's), float32, bfloat16 or float16.")] = "auto",
          max_shard_size: Annotated[str | None, typer.Option(help="Largest file, such as 2GB; without it as the base model.")] = None,
          weights: Annotated[str | None, typer.Option(help="Of several: one number each, such as 0.5,0.5.")] = None,
          how: Annotated[str, typer.Option(help="Of several: average and cat are exact, linear, ties and dare are PEFT's.")] = "average",
          density: Annotated[float, typer.Option(help="The share of values that ties and dare keep.")] = 0.5,
          seed: Annotated[int, typer.Option(min=0, help="Of what dare drops.")] = 0,
          onto: Annotated[str, typer.Option(help="base, or for QLoRA quantized: the weights that the adapter was trained over.")] = "base",
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Merge adapters into their base model and check that the result answers as they do.

    Example: sweetspot merge last@pick alex

    Example: sweetspot merge last@12 last@36 alex-mean --how average --dtype bfloat16
    """
    place = Workspace.open(workspace)
    job = merge_job_for(place, MergeRequest(
        tuple(models), name, strength=strength, dtype=dtype, max_shard_bytes=parse_size(max_shard_size) if max_shard_size else None,
        onto=onto, weights=parse_weights(weights), how=how, density=density, seed=seed))
    start_job(job)
    report = follow(job, is_silent=json).result or {}
    if json:
        print_json(report)
    elif report:
        _say_report(report)
        if Merged(place.models / report["name"], report).can_chat:
            say(f"Chat with it: sweetspot chat {report['base']} {models[0]} {report['name']}")


def _say_report(report: dict[str, Any]) -> None:
    check, combined, quantised = report["verification"], report.get("combined"), report["verification"].get("quantised")
    if combined:
        say(f"{combined['how']} of {len(combined['models'])} adapters, rank {combined['rank']}, {combined['norm_ratio']:.2f} times as "
            "strong as their exact weighted sum.")
        if combined["warning"]:
            say(f"Warning: {Text.from_json(combined['warning'])}")
    say(f"models/{report['name']}: {check['answers_compared']} answers compared, {len(check['differences'])} differ; logits within "
        f"{check['max_logit_difference']:.1e}; {check['tensors_changed']} tensors changed.")
    if quantised:
        onto = "those same weights" if quantised["onto"] == "quantized" else "the base's own weights"
        say(f"The adapter was trained over {quantised['kind']} weights and merged onto {onto}: beside the model as it was trained, "
            f"{len(quantised['differences'])} of {quantised['answers_compared']} answers differ; logits within "
            f"{quantised['max_logit_difference']:.1e}.")
        if quantised["onto"] == "base" and quantised["kind"] == "nf4":
            say("With --onto quantized it is merged onto the weights that training saw.")
