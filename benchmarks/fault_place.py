"""Where faults happen: a workspace with the tiny model, what undisturbed work gives in it, and what must hold after each fault.

What is killed is the real work: `core.jobs.worker.run_job` or `core.chat.worker.serve` in a process of its own, forked from this one,
which has torch loaded already (loading it anew would take nine tenths of the time).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.data import import_job
from core.data.library import list_datasets, load_dataset
from core.jobs.folder import Job, JobState, list_jobs
from core.jobs.process import ProcessIdentity
from core.lesson import judge_job_of, merge_job_of
from core.models.catalogue import list_models
from core.models.header import ModelHeader, tensor_shapes
from core.recipe.schema import Recipe
from core.runs import Run, list_runs
from core.train.create import create_run
from core.workspace import Workspace, read_json
from tests.conftest import write_tiny_tokenizer, write_tiny_weights
from tests.core.conftest import save_tiny_dataset, tiny_recipe, tiny_rows

TRUE_WITHIN_SECONDS = 10.0
_IMPORTED_ROWS = 4000


@dataclass
class Tally:
    """What came of the kills of one kind."""

    kills: int = 0
    too_late: int = 0
    slowest_truth: float = 0.0
    done_again: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)


class Place:
    """A workspace with the tiny model, a dataset, and what undisturbed work gives, to compare with.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        import torch

        torch.set_num_threads(1)
        self.model = root / "tiny"
        self.model.mkdir()
        write_tiny_tokenizer(self.model)
        write_tiny_weights(self.model)
        self.workspace = Workspace.open(root / "workspace")
        os.environ["SWEETSPOT_HOME"] = str(self.workspace.root)
        save_tiny_dataset(self.workspace)
        shutil.copytree(self.model, self.workspace.models / "tiny")
        self.source = root / "rows.jsonl"
        rows = tiny_rows()
        self.source.write_text("".join(json.dumps(rows[number % len(rows)] | {"lang": "en"}, ensure_ascii=False) + "\n"
                                       for number in range(_IMPORTED_ROWS)), encoding="utf-8")
        self.recipe: Recipe = tiny_recipe(self.model, schedule__updates=12, snapshots__count=6, method__dropout=0.1)
        self.seconds: dict[str, float] = {}
        self.run = create_run(self.workspace, self.recipe, "whole")
        self._measure("train", self.run)
        judged = judge_job_of(self.workspace, self.run)
        self._measure("judge", judged)
        self._measure("merge", merge_job_of(self.workspace, f"{self.run.id}@last", "whole"))
        self._measure("import", self.import_of("whole"))

    def _measure(self, kind: str, job: Job) -> None:
        began = time.monotonic()
        assert finish(job).state == "finished", f"{kind} undisturbed: {job.log_tail(20)}"
        self.seconds[kind] = time.monotonic() - began

    def import_of(self, name: str) -> Job:
        held: list[Job] = []
        start, import_job.start_job = import_job.start_job, held.append
        try:
            import_job.start_import(self.workspace, str(self.source), name)
        finally:
            import_job.start_job = start
        return held[0]


def fork(work: Callable[[], int], log: Path) -> int:
    """Run `work` in a process that leads a session of its own and writes to `log`; returns its number."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            status = work()
        finally:
            os._exit(status)
    return child


def begin(job: Job) -> int:
    """Start a worker for the job as `core.jobs.launch` does, but forked."""
    from core.jobs.worker import run_job

    child = fork(lambda: run_job(job.folder), job.log)
    job.note_launch(ProcessIdentity.of(child))
    return child


def begin_again(job: Job) -> int:
    state = job.state()
    job.write_state(JobState(kind=state.kind, device=state.device, created=time.time()))
    return begin(job)


def finish(job: Job, again: bool = False) -> JobState:
    child = begin_again(job) if again else begin(job)
    os.waitpid(child, 0)
    return job.state()


def kill_at(child: int, seconds: float) -> bool:
    """SIGKILL after so long; returns whether it was still alive then."""
    time.sleep(seconds)
    try:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
    except ChildProcessError:  # of two that were started at once it was the one that left
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def look_around(workspace: Workspace, tally: Tally) -> None:
    """Read all that a page or command lists; whatever is listed must be whole."""
    for run in list_runs(workspace):
        run.state(), run.metrics(), run.answers(), run.scores(), run.verdict(), run.events(), run.log_tail()
        for checkpoint in run.checkpoints():
            tally.check(bool(tensor_shapes(checkpoint.folder) if (checkpoint.folder / "model.safetensors").exists() else
                             _adapter_is_whole(checkpoint.folder)), f"{checkpoint.folder} is half")
    for name, folder, header in list_models(workspace):
        tally.check(isinstance(header, ModelHeader), f"the model {name} is half")
        if name.startswith("killed"):
            tally.check((folder / "merge.json").exists(), f"the model {name} has no report")
    for dataset in list_datasets(workspace):
        digest = hashlib.sha256((dataset.folder / "rows.jsonl").read_bytes()).hexdigest()
        tally.check(digest == dataset.card.sha256, f"the dataset {dataset.card.name} is half")
    for job in list_jobs(workspace):
        job.state(), job.spec(), job.events()


def _adapter_is_whole(folder: Path) -> bool:
    from safetensors import safe_open

    read_json(folder / "adapter_config.json")
    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        return all(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - not a mapping


def wait_for_truth(job: Job, tally: Tally) -> None:
    """Nobody works on the job any more: its state must say so soon."""
    began = time.monotonic()
    while job.state().is_active and time.monotonic() - began < TRUE_WITHIN_SECONDS:
        time.sleep(0.01)
    tally.slowest_truth = max(tally.slowest_truth, time.monotonic() - began)
    tally.check(not job.state().is_active, f"{job.id} still says {job.state().state}")


def result_of(place: Place, kind: str, job: Job | None) -> object:
    """What the work gave, in a form that must be the same each time; of the undisturbed one for None."""
    if kind == "train":
        run = Run(job.folder) if job else place.run
        adapters = [hashlib.sha256((one.folder / "adapter_model.safetensors").read_bytes()).hexdigest() for one in run.checkpoints()]
        return [(record["update"], record["loss"]) for record in run.metrics()], adapters
    if kind == "merge":
        folder = place.workspace.models / (job.spec()["name"] if job else "whole")
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if kind == "import":
        return load_dataset(place.workspace, job.spec()["dataset"] if job else "whole").card.sha256
    run = Run(place.workspace.runs / job.spec()["run"]) if job else place.run
    return sorted((record["step"], record["probe"], record["text"]) for record in run.answers()), (run.verdict() or {}).get("pick")


def is_up(port: int) -> bool:
    """Whether a studio answers there, within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
                return answer.read() == b"ok"
        except OSError:
            time.sleep(0.1)
    return False
