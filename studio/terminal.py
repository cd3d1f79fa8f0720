"""What the command line prints: tables, progress, errors, and one JSON object where it was asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.errors import StudioError
from core.jobs.folder import Job, JobState
from core.jobs.launch import wait_for_job
from core.words import Text

console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
WorkspaceOption = Annotated[str | None, typer.Option("--workspace", help="The workspace folder; SWEETSPOT_HOME names it too.")]


def print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table of plain text: markup in a cell shows as it is."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        is_number = all(isinstance(row[len(table.columns)], (int, float)) for row in rows) if rows else False
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_plain(cell)) for cell in row))
    console.print(table)


def _plain(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return "-" if cell is None else str(cell)


def say(text: str) -> None:
    """Print text as it is: no markup, and no line broken, so that a path or a recipe can be copied and piped."""
    console.print(text, markup=False, soft_wrap=True)


def say_problem(error: StudioError) -> None:
    """The two lines of a failure, on stderr."""
    for name, text in (("problem", error.problem), ("hint", error.hint)):
        errors.print(f"{name}: {' '.join(str(text).splitlines())}", markup=False, soft_wrap=True)


def confirm(question: str) -> None:
    """Ask on stderr, so that stdout stays clean. Raises typer.Abort unless the answer is yes."""
    errors.print(f"{question} [y/N]: ", end="", markup=False, soft_wrap=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort


def ago(seconds_since_epoch: float | None) -> str:
    """A moment as people say it: `3 min ago`."""
    if not seconds_since_epoch:
        return "-"
    seconds = max(0, time.time() - seconds_since_epoch)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def duration(seconds: float | None) -> str:
    """`95` -> `1:35`; `-` when it cannot be told yet."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class JobBars:
    """Progress bars that follow jobs: one bar for each thing a job says it is doing, with the time left. Silent under --json."""

    def __init__(self, is_silent: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=console, disable=is_silent)
        self._task: Any = None
        self._label = ""

    def __enter__(self) -> JobBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_bar()
        if self._task is not None:
            self._progress.stop()

    def show(self, state: JobState) -> None:
        """Draw how the job stands."""
        progress = state.progress
        if progress.label is None:
            return
        self._progress.start()  # not before there is something to show: an empty bar is an empty line
        label = str(Text.from_json(progress.label))
        if label != self._label:
            self._close_bar()
            self._label = label
            self._task = self._progress.add_task(escape(label), total=progress.total, left="")
        left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
        self._progress.update(self._task, completed=progress.done, total=progress.total, left=left)

    def _close_bar(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, left="")
            self._progress.stop_task(self._task)


def follow(job: Job, is_silent: bool = False) -> JobState:
    """Show a job's progress until it ends. Ctrl-C leaves the job running and says so.

    Raises:
        JobFailed: the job failed.
    """
    with JobBars(is_silent) as bars:
        try:
            return wait_for_job(job, bars.show)
        except KeyboardInterrupt:
            errors.print(f"\nIt goes on without this window. Look again with `sweetspot run follow {job.id}`, "
                         f"end it with `sweetspot run stop {job.id}`.", markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
