"""A worker whose work is odd on purpose: `python tests/core/odd_jobs.py FOLDER...` does what each folder's spec says under `do`."""

from __future__ import annotations

import errno
import signal
import sys
import time
from pathlib import Path

from core import workspace as workspace_module
from core.errors import StudioError
from core.jobs import worker
from core.words import Text


def work(workspace, job, recorder):
    (job.folder / "began").touch()
    return globals()[job.spec()["do"]](workspace, job, recorder)


def wait(_, job, recorder):
    """Honour a request to stop, or end when the test says so."""
    while not recorder.stop_requested() and not (job.folder / "end").exists():
        time.sleep(0.02)
    return {"began": (job.folder / "began").stat().st_mtime_ns}


def ignore(_, job, recorder):
    """Never look at the stop file, and take no notice of TERM."""
    signal.signal(signal.SIGTERM, lambda *_: (job.folder / "term").touch())
    while True:
        time.sleep(0.02)


def explain(*_):
    raise StudioError("Row {row} is empty.", "Write it, or delete it.", row=3)


def surprise(*_):
    raise KeyError("colour")


def leave(*_):
    sys.exit(3)


def eat(*_):
    raise MemoryError


def fill_disk(_, job, recorder):
    """From here on every write finds the disk full."""
    def replace(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    workspace_module.os.replace = replace
    recorder.progress(1, 2, Text("training"))


if __name__ == "__main__":
    worker.WORK |= {"odd": ("__main__:work", False), "queued": ("__main__:work", True)}
    sys.exit(max(worker.run_job(Path(folder)) for folder in sys.argv[1:]))
