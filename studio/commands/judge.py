"""`sweetspot judge | pick | data hold-out`: which checkpoint, and the questions that decide it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.data.hold_out import DEFAULT_ROWS, hold_out_rows
from core.errors import StudioError
from core.jobs.launch import start_job
from core.judge.conclude import choose_step
from core.judge.probe_files import read_probe_file
from core.judge.probes import add_probes
from core.judge.verdict import Verdict
from core.lesson import judge_job_of
from core.runs import find_run
from core.workspace import Workspace
from studio.tables import print_scores, print_verdict
from studio.terminal import JsonOption, WorkspaceOption, follow, print_json, say


def judge(run: str,
          probes: Annotated[Path | None, typer.Option(help="JSONL or YAML file with questions of your own; those with a check count.")]
              = None,
          quick: Annotated[bool, typer.Option("--quick", help="Ask fewer questions: a first look, and the verdict says how sure it is.")]
              = False,
          endpoint: Annotated[bool, typer.Option("--endpoint", help="Let checks of the kind `judge` send questions and answers to the "
                                                 "address in the file; its key comes from SWEETSPOT_JUDGE_KEY.")] = False,
          json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Ask every snapshot of a run the probes, score the answers, and choose.

    Example: sweetspot judge last --probes mine.jsonl
    """
    place = Workspace.open(workspace)
    found = find_run(place, run)
    if probes is not None:
        add_probes(place, found, read_probe_file(probes))
    job = judge_job_of(place, found, quick, endpoint)
    start_job(job)
    follow(job, is_silent=json)
    if json:
        print_json({"run": found.id, "verdict": found.verdict(), "scores": found.scores()})
    else:
        print_scores(found)
        print_verdict(found)


def pick(run: str, step: Annotated[int | None, typer.Option(help="Overrule the verdict with this step.")] = None,
         rule: Annotated[bool, typer.Option("--rule", help="Give the choice back to the rule.")] = False,
         json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show the picked checkpoint of a judged run, or pick another by hand.

    Example: sweetspot pick last --step 12
    """
    found = find_run(Workspace.open(workspace), run)
    written = found.verdict()
    if step is not None and rule:
        raise typer.BadParameter("--step and --rule exclude each other", param_hint="--rule")
    if step is not None or rule:
        verdict = choose_step(found, step)
    elif written is not None:
        verdict = Verdict.model_validate(written)
    else:
        raise StudioError("The run {run} is not judged yet.", "Run `sweetspot judge {run}` first.", run=found.id)
    if json:
        print_json(verdict.model_dump())
    else:
        print_verdict(found)
        say(f"Merge it: sweetspot merge {found.id}@pick NAME")


def hold_out(name: str, rows: Annotated[int | None, typer.Option(
                 min=1, help=f"How many rows to take out; {DEFAULT_ROWS} if left out, and of a small dataset a fifth.")] = None,
             json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Take rows out of a dataset, evenly spread, and keep them as questions that no training sees.

    A question that is taken out is taken out wherever it stands.

    Example: sweetspot data hold-out my-data --rows 40
    """
    outcome = hold_out_rows(Workspace.open(workspace), name, rows)
    if json:
        print_json(outcome)
    else:
        say(f"{outcome['held_out']} rows of {name} are held out now; {outcome['rows']} are left for training, "
            f"{outcome['left_out']} of the same questions were dropped.")
