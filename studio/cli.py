"""The command line: `sweetspot --help`. Every page of the studio does what one of these commands does."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from core.errors import StudioError
from core.machine import diagnose, read_machine
from core.words import Text
from core.workspace import Workspace
from studio.commands import data, lesson, models, recipe, runs
from studio.launch import DEFAULT_PORT, launch
from studio.terminal import JsonOption, WorkspaceOption, errors, print_json, say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Fine-tune a small chat model and pick the checkpoint before it overfits.")
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")
app.add_typer(runs.run_app, name="run")
app.add_typer(models.app, name="models")
app.command()(lesson.lesson)
app.command()(runs.train)
app.command("runs")(runs.show_runs)
app.command()(runs.judge)
app.command()(runs.pick)
app.command()(runs.merge)
app.command()(models.chat)


@app.command()
def studio(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = DEFAULT_PORT) -> None:
    """Serve the studio in the browser, on this machine only.

    Example: sweetspot studio --port 6006
    """
    say(f"Sweetspot on http://127.0.0.1:{port}  (from another computer: ssh -L {port}:127.0.0.1:{port} USER@THIS-MACHINE)")
    launch(port)


@app.command()
def doctor(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what this machine can do, what is missing, and what to do about it.

    Example: sweetspot doctor
    """
    place = Workspace.open(workspace)
    findings = diagnose(place)
    if json:
        print_json({"machine": read_machine(place).model_dump(), "findings": [finding.model_dump() for finding in findings]})
        return
    marks = {"ok": "ok     ", "warning": "warning", "error": "error  "}
    for finding in findings:
        say(f"{marks[finding.level]}  {Text.from_json(finding.text)}")
        if finding.fix:
            say(f"         -> {Text.from_json(finding.fix)}")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run a command; what the user can mend is said in two lines, `problem` and `hint`."""
    try:
        app()
    except StudioError as error:
        errors.print(f"problem: {error.problem}", markup=False, soft_wrap=True)
        errors.print(f"hint: {error.hint}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
