"""Bringing a workspace up to date when it is opened; `version.json` says what it is."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from core.errors import StudioError
from core.jobs.active import active_jobs
from core.jobs.once import one_at_a_time
from core.migrations.steps import STEPS, VERSION
from core.workspace import Workspace, read_json, whole_file, write_json, write_text

# Workspaces whose version this process has seen to be right, by the change time of the file that says so.
_seen: dict[Path, int] = {}


def bring_up_to_date(workspace: Workspace) -> list[Path]:
    """Do what is missing; returns the files that were changed.

    Steps wait while a job is at work. A workspace that cannot be written is left as it is: it can still be read.

    Raises:
        StudioError: a newer program wrote the workspace.
    """
    path = workspace.root / "version.json"
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    if changed and _seen.get(workspace.root) == changed:
        return []
    found = _version(path)
    if found > VERSION:
        raise StudioError("A newer Sweetspot wrote the workspace {root} (version {found}; this one knows {known}).",
                          "Update Sweetspot, or name another workspace with SWEETSPOT_HOME or --workspace.",
                          root=workspace.root, found=found, known=VERSION)
    files: list[Path] = []
    if found < VERSION:
        try:
            with one_at_a_time(workspace, "migration"):
                files = _migrate(workspace, path)
        except (StudioError, OSError):
            return []  # a full or read-only disk: nothing is half done, and the next opening tries again
    if path.exists() and _version(path) == VERSION:
        _seen[workspace.root] = path.stat().st_mtime_ns
    return files


def _migrate(workspace: Workspace, path: Path) -> list[Path]:
    found = _version(path)
    if found < VERSION and active_jobs(workspace):
        return []  # what they write is theirs
    backup = workspace.root / "backups" / f"{time.strftime('%Y%m%d-%H%M%S')}-version-{found}"
    files: list[Path] = []
    for number, step in enumerate(STEPS[found:], found + 1):
        for file, text in step(workspace):
            kept = backup / file.relative_to(workspace.root)
            if not kept.exists():  # of two steps that change a file, the first copy is the old one
                kept.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(kept) as hidden:  # half a copy would be taken for the old file
                    shutil.copyfile(file, hidden)
            write_text(file, text)
            files.append(file)
        write_json(path, {"version": number})
    return files


def _version(path: Path) -> int:
    """0 for a workspace from before versions were written, or a file that says nothing."""
    try:
        return int(read_json(path)["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
