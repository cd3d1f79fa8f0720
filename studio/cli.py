"""The command line: `sweetspot --help`. Every page of the studio does what one of these commands does."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from core.errors import StudioError
from core.machine import Finding, diagnose, read_machine
from core.words import Text
from core.workspace import Workspace
from studio.commands import (
    chat,
    classroom,
    convert,
    data,
    housekeeping,
    judge,
    lesson,
    merge,
    models,
    publish,
    recipe,
    remedy,
    runs,
    serve,
    share,
)
from studio.terminal import JsonOption, WorkspaceOption, errors, print_json, say, say_problem

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Fine-tune a small chat model and pick the checkpoint before it overfits.")
data.app.command("hold-out")(judge.hold_out)
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")
app.add_typer(runs.run_app, name="run")
app.add_typer(models.app, name="models")
app.add_typer(housekeeping.app, name="workspace")
app.add_typer(convert.app, name="convert")
app.add_typer(classroom.app, name="class")
app.command()(publish.publish)
app.command()(share.studio)
app.command()(lesson.lesson)
app.command()(runs.train)
app.command("runs")(runs.show_runs)
app.command()(judge.judge)
app.command()(judge.pick)
app.command()(remedy.remedy)
app.command()(merge.merge)
app.command()(chat.chat)
app.command()(serve.serve)


@app.command()
def doctor(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Say what this machine can do, what is missing, and what to do about it.

    Example: sweetspot doctor
    """
    place = Workspace.open(workspace)
    findings = diagnose(place)
    if json:
        print_json({"machine": read_machine(place).model_dump(), "findings": [_plain_finding(finding) for finding in findings]})
    else:
        marks = {"ok": "ok     ", "warning": "warning", "error": "error  "}
        for finding in findings:
            say(f"{marks[finding.level]}  {Text.from_json(finding.text)}")
            if finding.fix:
                say(f"         -> {Text.from_json(finding.fix)}")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def _plain_finding(finding: Finding) -> dict[str, str | None]:
    return {"level": finding.level, "text": str(Text.from_json(finding.text)),
            "fix": str(Text.from_json(finding.fix)) if finding.fix else None}


# Whatever typer raises about a command line it does not understand; its class is not part of typer's own interface.
_UsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "UsageError")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit; what went wrong is said in two lines, `problem` and `hint`, never as a traceback.

    Exit codes: 0 done, 2 something the user can mend, 1 a job failed, 130 interrupted.
    """
    try:
        sys.exit(app(arguments, prog_name="sweetspot", standalone_mode=False))
    except StudioError as error:
        say_problem(error)
        sys.exit(error.exit_code)
    except _UsageError as error:
        sys.exit(_explain_usage(error))
    except typer.Abort:
        errors.print("Nothing was done.")
        sys.exit(1)
    except Exception as error:
        if os.environ.get("SWEETSPOT_DEBUG"):
            raise
        say_problem(StudioError(
            "It ended with an error nobody foresaw: {kind}: {text}", "Run it again with SWEETSPOT_DEBUG=1 in front to see where.",
            kind=type(error).__name__, text=str(error)[:300] or "-"))
        sys.exit(1)


def _explain_usage(error: Any) -> int:
    """Show a command line's fault in the shape of every other failure; a command group without a command shows its help."""
    place = error.ctx.command_path if error.ctx else "sweetspot"
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        message = error.format_message()
        errors.print(f"problem: {' '.join(message.split())}", markup=False, soft_wrap=True)
        errors.print(f"hint: `{place} --help` shows how.", markup=False, soft_wrap=True)
    return error.exit_code


if __name__ == "__main__":
    main()
