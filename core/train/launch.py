"""A training in several processes: started through torchrun, watched, and ended together.

The job's own process stays what it is for one: it holds the devices and writes the state. It runs torchrun's agent, which starts the
ranks (`core.train.rank`), and reads what they leave in the run's folder `ranks`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

from core.errors import JobFailed, StudioError
from core.jobs.folder import KILLED_HINT
from core.jobs.worker import Recorder
from core.machine import processor_threads, seen_alone
from core.recipe.schema import Recipe
from core.runs import Run
from core.train.rank import PARENT, folder_of
from core.words import Text
from core.workspace import read_json, write_json

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Nodes:
    """Which of how many machines this is, and where the first one listens.

    Attributes:
        count: machines in all.
        rank: this one, from 0; number 0 keeps the run.
        address: `host:port` of number 0; of no concern to one machine alone.
    """

    count: int = 1
    rank: int = 0
    address: str = ""


class _Agent(threading.Thread):
    """Torchrun's agent, in a thread: the main thread hears signals and reads progress meanwhile."""

    def __init__(self, processes: int, nodes: Nodes, folder: str) -> None:
        super().__init__(daemon=True)
        self.processes, self.nodes, self.folder = processes, nodes, folder
        self.failures: dict[int, Any] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        is_alone = self.nodes.count == 1
        config = LaunchConfig(
            min_nodes=self.nodes.count, max_nodes=self.nodes.count, nproc_per_node=self.processes, run_id="sweetspot", max_restarts=0,
            rdzv_backend="c10d" if is_alone else "static", rdzv_endpoint="127.0.0.1:0" if is_alone else self.nodes.address,
            rdzv_configs={} if is_alone else {"rank": self.nodes.rank, "timeout": 900}, local_addr="127.0.0.1" if is_alone else None)
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "core.train.rank", self.folder)
        except ChildFailedError as error:
            self.failures = error.failures
        except BaseException as error:
            self.error = error


def train_in_processes(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Train with as many processes as the run's spec says; see `train_job`.

    Raises:
        StudioError: a rank failed; says which, and why.
    """
    while True:
        shutil.rmtree(folder_of(run), ignore_errors=True)
        folder_of(run).mkdir()
        spec = run.spec()
        nodes = Nodes(**spec.get("nodes", {}))
        agent = start_ranks(spec["processes"], nodes, str(run.folder), spec.get("gpus"))
        _follow(agent, run, recorder)
        result = folder_of(run) / "result.json"
        if not agent.failures and agent.error is None and result.exists():
            return read_json(result)
        smaller = _smaller_fit(run)
        if smaller is None:
            raise _explain(run, agent, spec["processes"] * nodes.count)
        recorder.event("less_at_a_time", **smaller)
        write_json(run.folder / "spec.json", {**spec, "fit": smaller})


def start_ranks(processes: int, nodes: Nodes, folder: str, gpus: list[int] | None) -> _Agent:
    """Start this machine's ranks; `folder` is `-` on machines that did not create the run."""
    os.environ[PARENT] = str(os.getpid())
    if gpus is None:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processor_threads() // processes)))
    else:
        os.environ.update(seen_alone(",".join(f"cuda:{gpu}" for gpu in gpus)))
    if nodes.count == 1 and sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name may lead nowhere, as in many containers
    agent = _Agent(processes, nodes, folder)
    agent.start()
    return agent


def _follow(agent: _Agent, run: Run, recorder: Recorder) -> None:
    """Pass on what rank 0 says until the ranks have ended, and a request to stop the other way."""
    seen: Any = None
    while agent.is_alive():
        agent.join(_POLL_SECONDS)
        if recorder.stop_requested():
            run.request_stop()
        try:
            said = read_json(folder_of(run) / "progress.json")
        except (OSError, ValueError):
            continue
        if said != seen:
            seen = said
            recorder.progress(said["done"], said["total"], Text.from_json(said["label"]))


def _smaller_fit(run: Run) -> dict[str, int] | None:
    """What to take at a time after a rank ran out of memory; None when that is not what happened, or nothing is left to halve."""
    return next((said["fit"] for said in _said_by_failed(run) if said["fit"]), None)


def _said_by_failed(run: Run) -> list[dict[str, Any]]:
    """What failed ranks left behind, the first to fail first."""
    return sorted((read_json(path) for path in folder_of(run).glob("failed-*.json")), key=lambda said: (not said["is_known"], said["time"]))


def _explain(run: Run, agent: _Agent, count: int) -> StudioError:
    """The failure that came first; the others only lost their partner."""
    told = {said["rank"]: said for said in _said_by_failed(run)}
    for rank, failure in sorted(agent.failures.items()):
        if rank not in told and failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            return StudioError(
                "Process {rank} of {count} was killed ({signal}); the others were stopped.",
                "What was saved is intact: `sweetspot run resume` goes on, also with another number of GPUs (--gpus).",
                rank=rank, count=count, signal=signal.Signals(-failure.exitcode).name)
    for said in told.values():
        if said["is_known"]:
            return JobFailed.from_texts(Text.from_json(said["problem"]), Text.from_json(said["hint"]))
        return JobFailed.from_texts(Text("Process {rank} of {count}: {reason}", rank=said["rank"], count=count,
                                         reason=Text.from_json(said["problem"])), Text.from_json(said["hint"]))
    reason = str(agent.error or "; ".join(f"{rank}: {failure.exitcode}" for rank, failure in sorted(agent.failures.items())) or "-")
    return JobFailed.from_texts(Text("The processes of this training ended early: {reason}", reason=reason[:300]), KILLED_HINT)


def help_as_node(processes: int, nodes: Nodes, gpus: list[int] | None) -> int:
    """Be one of the other machines of a training that machine 0 keeps; returns the exit code once it has ended."""
    agent = start_ranks(processes, nodes, "-", gpus)
    while agent.is_alive():
        agent.join(_POLL_SECONDS)
    return 1 if agent.failures or agent.error else 0


def needs_ranks(recipe: Recipe, spec: dict[str, Any]) -> bool:
    """Whether a run is for processes of their own: several of them, or DeepSpeed's engine."""
    return recipe.device.zero > 0 or spec.get("processes", 1) * spec.get("nodes", {}).get("count", 1) > 1
