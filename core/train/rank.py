"""One of the processes that share a training: `torchrun ... -m core.train.rank FOLDER`.

What it has to say goes into the run's folder `ranks`: its process number, rank 0's progress and result, and why a rank failed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import unexpected
from core.models.load import choose_device
from core.redact import RedactedStream, redact_data
from core.runs import Run
from core.train.fit import OutOfMemory
from core.train.ranks import Ranks
from core.words import Text
from core.workspace import Workspace, write_json

PARENT = "SWEETSPOT_PARENT"
_PROGRESS_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


class RankRecorder:
    """What a training tells its job, written down by rank 0 for the job's own process to read."""

    def __init__(self, run: Run, ranks: Ranks) -> None:
        self._run, self._ranks, self._told = run, ranks, 0.0

    def progress(self, done: int, total: int, label: Text) -> None:
        now = time.monotonic()
        if self._ranks.is_first and (done in (0, total) or now - self._told >= _PROGRESS_SECONDS):
            self._told = now
            write_json(folder_of(self._run) / "progress.json", {"done": done, "total": total, "label": label.to_json()})

    def event(self, name: str, **data: Any) -> None:
        if self._ranks.is_first:
            self._run.event(name, **data)

    def stop_requested(self) -> bool:
        return (self._run.folder / "stop").exists()


def folder_of(job: Job) -> Path:
    return job.folder / "ranks"


def end_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it is gone: no rank outlives its job."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was gone before it could be watched
        os._exit(1)


def main(folder: str) -> None:
    """Train as the rank that torchrun's environment says.

    Args:
        folder: the run's; `-` on a node that did not start the run: rank 0 tells which it is.
    """
    from core.train.worker import Training  # it imports this module, to start ranks

    end_with_parent()
    workspace = Workspace.open(None if folder == "-" else Path(folder).resolve().parent.parent)
    run = None if folder == "-" else Run(Path(folder).resolve())
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    try:
        kind = choose_device(os.environ.get("SWEETSPOT_DEVICE", "auto") if run is None else run.recipe().device.kind)
        ranks = Ranks.join(kind)
        run = Run(workspace.runs / ranks.told_by_first(run.folder.name if ranks.is_first and run else None))
        write_json(folder_of(run) / f"process-{ranks.index}.json", {"rank": ranks.index, "pid": os.getpid()})
        result = Training(workspace, run, RankRecorder(run, ranks), ranks).run_to_end()
        if ranks.is_first:
            write_json(folder_of(run) / "result.json", result)
        ranks.wait_for_all()
        ranks.leave()
        sys.stdout.flush()
        os._exit(0)  # all is on disk; threads of the libraries now and then abort a process whose interpreter is going down
    except BaseException as error:
        _say_why(run, ranks, error)
        os._exit(1)  # the others may be waiting for this rank in the midst of an exchange; torchrun ends them


def _say_why(run: Run | None, ranks: Ranks, error: BaseException) -> None:
    if isinstance(error, StudioError):
        print(f"rank {ranks.index}: {error.problem}\n{error.hint}", flush=True)
    else:
        traceback.print_exc()
    known = error if isinstance(error, StudioError) else unexpected(error)
    if run is not None:
        smaller = error.smaller if isinstance(error, OutOfMemory) else None
        write_json(folder_of(run) / f"failed-{ranks.index}.json", {
            "rank": ranks.index, "time": time.time(), "is_known": isinstance(error, StudioError), **redact_data(known.to_json()),
            "fit": None if smaller is None else {"tokens": smaller.tokens, "rows": smaller.rows}})


if __name__ == "__main__":
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    main(sys.argv[1])
