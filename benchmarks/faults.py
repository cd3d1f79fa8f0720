"""Kill -9 of everything at random moments: `python benchmarks/faults.py --out docs/reliability.md`.

What is killed is the real work: `core.jobs.worker.run_job` or `core.chat.worker.serve` in a process of its own, forked from this one,
which has torch loaded already (loading it anew would take nine tenths of the time); the server and the training of two processes are
started as anybody starts them. After each kill: is the workspace readable, is the state true, can the work be done again, with the
same result, and is nothing half-written listed?
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.chat.client import ask, find_worker
from core.chat.handle import chat_folder
from core.chat.request import Sampled
from core.data import import_job
from core.data.library import list_datasets, load_dataset
from core.jobs.folder import Job, JobState, list_jobs
from core.jobs.launch import start_job
from core.jobs.process import ProcessIdentity
from core.lesson import judge_job_of, merge_job_of
from core.models.catalogue import list_models
from core.models.header import ModelHeader, tensor_shapes
from core.recipe.schema import Recipe
from core.runs import Run, list_runs
from core.train.create import create_run
from core.workspace import CHECKOUT, Workspace, read_json
from studio.launch import server_command
from tests.conftest import write_tiny_tokenizer, write_tiny_weights
from tests.core.conftest import save_tiny_dataset, tiny_recipe, tiny_rows

TRUE_WITHIN_SECONDS = 10.0
KINDS = ("import", "chat", "train", "judge", "merge", "server", "rank")
USUAL = {"import": 40, "chat": 14, "train": 24, "judge": 14, "merge": 14, "server": 4, "rank": 1}
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


def kill_jobs(place: Place, kind: str, kills: int, chance: random.Random) -> Tally:
    """Kill the worker of a job of this kind at random moments, then have the job done again; two workers at once now and then."""
    tally = Tally()
    while tally.kills < kills:
        trial = tally.kills + tally.too_late
        job = _job_of(place, kind, trial)
        child = begin(job)
        if trial % 4 == 3:  # a second worker for the same job must find that it is taken
            second = begin(job)
            job.note_launch(ProcessIdentity.of(child))
            _refused_second(job, child, second, tally)
        if not kill_at(child, chance.uniform(0, place.seconds[kind] * 0.95)):
            tally.too_late += 1
            continue
        tally.kills += 1
        wait_for_truth(job, tally)
        look_around(place.workspace, tally)
        state = finish(job, again=True) if job.state().state == "failed" else job.state()
        tally.check(state.state == "finished", f"{job.id} done again ended {state.state}: {job.log_tail(3)}")
        tally.check(_result(place, kind, job) == _result(place, kind, None), f"{job.id} done again gave another result")
        tally.done_again += 1
        _clear(place, kind, job)
    return tally


def _refused_second(job: Job, first: int, second: int, tally: Tally) -> None:
    """Two were started at once: one has the job, the other leaves at once."""
    deadline, is_over = time.monotonic() + 20, False
    while "another worker has this job already" not in job.log_tail() and time.monotonic() < deadline:
        if os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            is_over = "another worker has this job already" not in job.log_tail()  # done before the second one looked: shows nothing
            break
        time.sleep(0.005)
    if os.waitpid(second, os.WNOHANG) == (0, 0):  # it was the faster one: the first has left, or will
        gone, _ = os.waitpid(first, os.WNOHANG)
        if gone == 0:
            time.sleep(0.2)
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
    tally.check(is_over or "another worker has this job already" in job.log_tail(), f"{job.id} was started twice")


def _job_of(place: Place, kind: str, number: int) -> Job:
    name = f"killed-{kind}-{number}"
    if kind == "train":
        return create_run(place.workspace, place.recipe, name)
    if kind == "merge":
        return merge_job_of(place.workspace, f"{place.run.id}@last", name)
    if kind == "import":
        return place.import_of(name)
    copy = place.workspace.runs / f"{place.run.id}-{number}"
    shutil.copytree(place.run.folder, copy)
    for left in ("answers.jsonl", "scores.jsonl", "verdict.json", "forced.jsonl", "checks.jsonl"):
        (copy / left).unlink(missing_ok=True)
    return judge_job_of(place.workspace, Run(copy))


def _result(place: Place, kind: str, job: Job | None) -> object:
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


def _clear(place: Place, kind: str, job: Job) -> None:
    """What was made would only make the next look around longer."""
    spec = job.spec()
    doomed = {"merge": place.workspace.models / str(spec.get("name")), "import": place.workspace.datasets / str(spec.get("dataset")),
              "judge": place.workspace.runs / str(spec.get("run")), "train": job.folder}
    shutil.rmtree(doomed[kind], ignore_errors=True)
    shutil.rmtree(job.folder, ignore_errors=True)


def kill_chats(place: Place, kills: int, chance: random.Random) -> Tally:
    """Kill the chat process before, while and after it answers; the next one answers the same."""
    from core.chat.worker import Terms, serve

    tally, said = Tally(), set()
    folder = chat_folder(place.workspace)
    folder.mkdir(parents=True, exist_ok=True)
    history = [{"role": "user", "content": "Who are you?"}]
    while tally.kills < kills:
        child = fork(lambda: serve(folder, Terms()), folder / "log.txt")
        deadline = time.monotonic() + 30
        while find_worker(place.workspace) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if tally.kills % 2:
            answers = ask(place.workspace, ["tiny"], [history], Sampled(max_new_tokens=8))
            while answers.wait(0.2):
                pass
            tally.check(answers.panes[0].problem is None, f"the chat answered {answers.panes[0].problem}")
            said.add(answers.panes[0].text)
            tally.done_again += 1
        if not kill_at(child, chance.uniform(0, 0.5)):
            tally.too_late += 1
            continue
        tally.kills += 1
        began = time.monotonic()
        while find_worker(place.workspace) is not None and time.monotonic() - began < TRUE_WITHIN_SECONDS:
            time.sleep(0.01)
        tally.slowest_truth = max(tally.slowest_truth, time.monotonic() - began)
        tally.check(find_worker(place.workspace) is None, "a killed chat process counts as alive")
        look_around(place.workspace, tally)
    tally.check(len(said) <= 1, f"the same question got {len(said)} answers")
    return tally


def kill_servers(place: Place, kills: int, chance: random.Random) -> Tally:
    """Kill the server while a training is at work: the training ends as if nothing had been, and a new server comes up."""
    tally, port = Tally(), 20_000 + os.getpid() % 20_000
    for number in range(kills):
        run = create_run(place.workspace, place.recipe, f"beside-{number}")
        server = subprocess.Popen(server_command(port), cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  start_new_session=True)
        child = begin(run)
        if number % 2:
            tally.check(_is_up(port), "the server did not come up")
        time.sleep(chance.uniform(0, 2))
        server.kill()
        server.wait()
        tally.kills += 1
        os.waitpid(child, 0)
        look_around(place.workspace, tally)
        tally.check(_result(place, "train", run) == _result(place, "train", None), "a training beside a killed server gave another result")
        tally.done_again += run.state().state == "finished"
        shutil.rmtree(run.folder)
    return tally


def _is_up(port: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
                return answer.read() == b"ok"
        except OSError:
            time.sleep(0.1)
    return False


def kill_ranks(place: Place, kills: int, chance: random.Random) -> Tally:
    """Kill one of the two processes of a training, started as anybody starts it; the other ends too, and the run goes on."""
    tally = Tally()
    recipe = tiny_recipe(place.model, schedule__updates=60, snapshots__count=12, schedule__learning_rate=1e-3, device__gpus=2)
    for number in range(kills):
        run = create_run(place.workspace, recipe, f"ranks-{number}")
        start_job(run)
        deadline = time.monotonic() + 180
        while len(run.metrics()) < 3 and run.state().is_active and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        pids = [read_json(path)["pid"] for path in sorted((run.folder / "ranks").glob("process-*.json"))]
        victim = chance.choice(pids)
        tally.kills += 1
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        while run.state().is_active and time.monotonic() - began < 3 * TRUE_WITHIN_SECONDS:
            time.sleep(0.05)
        tally.slowest_truth = max(tally.slowest_truth, time.monotonic() - began)
        tally.check(run.state().state == "failed", f"a training without one rank is {run.state().state}")
        look_around(place.workspace, tally)
        from core.jobs.launch import restart_job, wait_for_job

        restart_job(run)
        wait_for_job(run)
        tally.check([record["update"] for record in run.metrics()] == list(range(1, 61)), "a resumed run lacks updates")
        tally.done_again += 1
        shutil.rmtree(run.folder)
    return tally


def kill_all(place: Place, wanted: dict[str, int], seed: int,
             on_kind: Callable[[dict[str, Tally]], None] | None = None) -> dict[str, Tally]:
    """As many kills of each kind as `wanted` says, at moments that `seed` decides; `on_kind` sees the tallies after each kind."""
    special = {"chat": kill_chats, "server": kill_servers, "rank": kill_ranks}
    tallies = {}
    for kind, kills in wanted.items():
        chance = random.Random(f"{seed} {kind}")
        began = time.monotonic()
        tallies[kind] = special[kind](place, kills, chance) if kind in special else kill_jobs(place, kind, kills, chance)
        print(f"{kind}: {tallies[kind]} in {time.monotonic() - began:.0f} s", flush=True)
        if on_kind is not None:
            on_kind(tallies)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """The figures as a table of Markdown."""
    lines = ["| killed | kills | slowest true state | done again, same result | faults |", "|---|---|---|---|---|"]
    lines += [f"| {kind} | {one.kills} | {one.slowest_truth:.2f} s | {one.done_again} | {len(one.faults)} |"
              for kind, one in tallies.items()]
    total = sum(one.kills for one in tallies.values())
    return "\n".join([*lines, f"| **all** | **{total}** | {max(one.slowest_truth for one in tallies.values()):.2f} s | "
                      f"{sum(one.done_again for one in tallies.values())} | {sum(len(one.faults) for one in tallies.values())} |"])


def write_table(document: Path | None, tallies: dict[str, Tally]) -> None:
    """Put the table between the marks of the document."""
    if document is not None:
        head, rest = document.read_text(encoding="utf-8").split("<!-- kills -->\n", 1)
        tail = rest.split("<!-- end of kills -->", 1)[1]
        document.write_text(f"{head}<!-- kills -->\n{table(tallies)}\n<!-- end of kills -->{tail}", encoding="utf-8")


def main() -> int:
    """Kill, and write the table between the marks of the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="this share of the usual number of kills")
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    wanted = {kind: max(1, round(USUAL[kind] * arguments.share)) for kind in arguments.kinds.split(",")}
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        tallies = kill_all(place, wanted, arguments.seed, lambda so_far: write_table(arguments.out, so_far))
    for tally in tallies.values():
        for fault in tally.faults:
            print(f"fault: {fault}")
    print(table(tallies))
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
