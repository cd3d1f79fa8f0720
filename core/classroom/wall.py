"""How everybody in a class stands, read from their workspaces: one line each, cheap enough to ask every few seconds."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.classroom.limits import student_bytes
from core.classroom.place import TEACHER
from core.classroom.room import Classroom
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.judge.verdict import Score, Verdict
from core.runs import Run, list_runs
from core.train.metrics import GrowingRecords, series, thin
from core.workspace import Workspace, whole_file

CURVE_POINTS = 60
_DISK_SECONDS = 60.0  # walking through thirty workspaces at every look would cost more than the rest
# What goes into the zip of a class: results, not weights.
_COLLECTED = ("recipe.yaml", "dataset.json", "environment.json", "metrics.jsonl", "scores.jsonl", "answers.jsonl", "verdict.json")
_readers: dict[str, GrowingRecords] = {}


@dataclass(frozen=True)
class Standing:
    """One student on the wall. Shares are 0..1; `verdict` is the newest run's, `best` the highest score of all their runs.

    Attributes:
        state: of the newest run; `nothing` before the first.
        kind: of the job at work now, whatever it is; empty when none is.
        share: how far that job, or else the newest run, has come.
        losses: of the newest run, at most `CURVE_POINTS`.
    """

    student: str
    name: str
    run: str | None = None
    title: str = ""
    state: str = "nothing"
    kind: str = ""
    share: float = 0.0
    losses: tuple[float, ...] = ()
    verdict: str | None = None
    step: int | None = None
    score: float | None = None
    learned: float | None = None
    kept: float | None = None
    best: float | None = None
    disk_bytes: int = 0


def read_wall(room: Classroom) -> list[Standing]:
    """Everybody who has joined, by name."""
    return [read_standing(student.slug, student.name, Workspace(room.folder / student.slug)) for student in room.students()]


def read_standing(slug: str, name: str, workspace: Workspace) -> Standing:
    """How one student stands; files that cannot be read count as not there, so that one broken run hides nobody else."""
    disk = student_bytes(workspace, _DISK_SECONDS)
    runs = list_runs(workspace) if workspace.runs.is_dir() else []
    active = [(job, state) for job, state in active_jobs(workspace) if state.kind != "lesson"] if workspace.jobs.is_dir() else []
    now = active[-1][1] if active else None
    kind, share = (now.kind, now.progress.done / now.progress.total if now.progress.total else 0.0) if now else ("", 0.0)
    if not runs:
        return Standing(slug, name, state=now.state if now else "nothing", kind=kind, share=share, disk_bytes=disk)
    newest, verdicts = runs[0], [verdict for run in runs if (verdict := _verdict(run)) is not None]
    verdict, state = _verdict(newest), newest.state()
    pick = verdict.pick if verdict else None
    return Standing(
        slug, name, newest.id, _title(newest), now.state if now else state.state, kind, share if now else 1.0, _losses(newest),
        verdict.verdict if verdict else None, pick.step if pick else None, pick.score if pick else None,
        pick.learned if pick else None, pick.kept if pick else None, max((found.pick.score for found in verdicts), default=None), disk)


def _verdict(run: Run) -> Verdict | None:
    try:
        written = run.verdict()
        return Verdict.model_validate(written) if written else None
    except (OSError, ValueError):
        return None


def _title(run: Run) -> str:
    try:
        return run.recipe().title or ""
    except (OSError, StudioError):
        return ""


def _losses(run: Run) -> tuple[float, ...]:
    reader = _readers.setdefault(str(run.folder), GrowingRecords(run.folder / "metrics.jsonl"))
    updates, losses = series(reader.read(), "loss")
    pairs = [(update, loss) for update, loss in zip(updates, losses, strict=True) if math.isfinite(loss)]
    return tuple(thin([update for update, _ in pairs], [loss for _, loss in pairs], CURVE_POINTS)[1])


def leaderboard(standings: Sequence[Standing]) -> list[Standing]:
    """Those with a verdict, best first; equal scores by name."""
    return sorted((found for found in standings if found.best is not None), key=lambda found: (-found.best, found.name.casefold()))


def scores_of(room: Classroom) -> list[tuple[str, str, Run, Verdict, Score]]:
    """(student's folder, name, run, verdict, picked step's score) of every judged run in the class, the teacher's too."""
    people = [(student.slug, student.name) for student in room.students()]
    found = []
    for slug, name in [(TEACHER, TEACHER), *people]:
        workspace = room.workspace if slug == TEACHER else Workspace(room.folder / slug)
        for run in list_runs(workspace) if workspace.runs.is_dir() else []:
            if (verdict := _verdict(run)) is not None:
                found.append((slug, name, run, verdict, verdict.pick))
    return found


def results_csv(room: Classroom) -> str:
    """One line per judged run. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["student", "folder", "run", "recipe", "verdict", "step", "score", "learned", "kept", "hits", "identity_probes",
                     "leaks", "other_probes"])
    for slug, name, run, verdict, pick in scores_of(room):
        writer.writerow([_cell(value) for value in (
            name, slug, run.id, _title(run), verdict.verdict, pick.step, f"{pick.score:.4f}", f"{pick.learned:.4f}", f"{pick.kept:.4f}",
            pick.hits, pick.identity_probes, pick.leaks, pick.other_probes)])
    return stream.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_results(room: Classroom, target: Path) -> int:
    """Everybody's recipes, curves, scores, answers and verdicts as one zip, with the table of results; returns the number of runs.

    Weights stay: thirty adapters are gigabytes. A link in a workspace is not followed.

    Raises:
        StudioError: the zip cannot be written.
    """
    count = 0
    with whole_file(target) as hidden, zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.csv", "\ufeff" + results_csv(room))  # the mark tells spreadsheets that it is UTF-8
        for student in room.students():
            workspace = Workspace(room.folder / student.slug)
            for run in list_runs(workspace) if workspace.runs.is_dir() else []:
                count += 1
                for name in _COLLECTED:
                    path = run.folder / name
                    if path.is_file() and not path.is_symlink():
                        archive.write(path, f"{student.slug}/{run.id}/{name}")
    return count
