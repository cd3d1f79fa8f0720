"""The base models of the study: the embedded one, and the student; each made once, by the first worker that needs it."""

from __future__ import annotations

import fcntl
from pathlib import Path

from benchmarks.pick.design import EMBEDDED
from core.models.embedded import prepare_embedded
from core.workspace import Workspace


def model_folder(name: str, folder: Path, device: str, is_rehearsal: bool = False) -> Path:
    """The folder of a base model below `folder`; prepared or trained now if it is not there. Others that need it wait."""
    workspace = Workspace.open(folder / "models-workspace")
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if name == EMBEDDED:
            return prepare_embedded(workspace)
        from benchmarks.pick.student import make_student

        return make_student(prepare_embedded(workspace), workspace.models / name, device, is_rehearsal)
