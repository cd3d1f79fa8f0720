"""Small JSON files that only their owner may read, not even for a moment somebody else."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from core.workspace import Workspace, explain_full_disk


def access_folder(workspace: Workspace) -> Path:
    """The folder of a workspace that says who may come in; mode 0700. It is no part of an export."""
    folder = workspace.root / "access"
    with explain_full_disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    return folder


def write_secret(path: Path, data: Any) -> None:
    """Write `data` with mode 0600 from the first byte on; readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    with explain_full_disk(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(data, stream, ensure_ascii=False)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def read_secret(path: Path) -> Any:
    """What the file holds; None when it is not there or damaged: then nobody comes in by it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
