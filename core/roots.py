"""Which folders a page may read files from: its workspace, the models it shares, and what was named at the start.

`sweetspot studio --root FOLDER` names more. On the command line there is no such limit: whoever types there may read the files anyway.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from core.classroom.place import models_home
from core.errors import StudioError
from core.workspace import Workspace

_NAME_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
# Set by `sweetspot studio`, inherited by the workers it starts: the named folders, joined by `os.pathsep`; unset means no limit.
ROOTS = "SWEETSPOT_ROOTS"


def read_roots(named: Sequence[Path]) -> list[str]:
    """The folders named at the start, links resolved.

    Raises:
        StudioError: one of them is no folder.
    """
    found = []
    for folder in named:
        resolved = folder.expanduser().resolve()
        if not resolved.is_dir() or os.pathsep in str(resolved):
            raise StudioError("{folder} is not a folder.", "Name a folder that exists, for example --root /data.", folder=folder)
        found.append(str(resolved))
    return found


def allowed_roots(workspace: Workspace) -> list[Path] | None:
    """The folders that `workspace` may read from; None when nothing was limited."""
    named = os.environ.get(ROOTS)
    if named is None:
        return None
    return [workspace.root, models_home(workspace).models, *(Path(folder) for folder in named.split(os.pathsep) if folder)]


def check_source(workspace: Workspace, source: str) -> None:
    """`check_path` for what may also be the name of something on a hub: `owner/name` that is no path here passes, and so does nothing."""
    if not source:
        return
    try:
        is_path = not _NAME_ON_HUB.fullmatch(source) or Path(source).exists()
    except (OSError, ValueError):
        is_path = True
    if is_path:
        check_path(workspace, Path(source))


def check_path(workspace: Workspace, path: Path) -> Path:
    """Return the path, links resolved, when a page may read it.

    Raises:
        StudioError: it lies elsewhere, or leads elsewhere by a link or `..`.
    """
    try:
        resolved = path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StudioError("The path {path} cannot be used.", "Type the full path of a file or folder.", path=path) from error
    roots = allowed_roots(workspace)
    if roots is None or any(resolved.is_relative_to(root.resolve()) for root in roots):
        return resolved
    raise StudioError("{path} lies outside the folders that this studio may read.",
                      "Copy it into the workspace, or start the studio with --root and the folder's name.", path=path)
