"""Kill -9 of everything at random moments: `python benchmarks/faults.py --out docs/reliability.md`.

What is killed is the real work, see `benchmarks/fault_place.py`; the server, the browser and the training of two processes are started
as anybody starts them. After each kill: is the workspace readable, is the state true, can the work be done again, with the
same result, and is nothing half-written listed?
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fault_place import (
    TRUE_WITHIN_SECONDS,
    Place,
    Tally,
    begin,
    finish,
    fork,
    is_up,
    kill_at,
    look_around,
    result_of,
    wait_for_truth,
)
from core.chat.client import ask, find_worker
from core.chat.handle import chat_folder
from core.chat.request import Sampled
from core.jobs.folder import Job
from core.jobs.launch import restart_job, start_job, wait_for_job
from core.jobs.process import ProcessIdentity
from core.lesson import judge_job_of, merge_job_of
from core.runs import Run
from core.train.create import create_run
from core.workspace import CHECKOUT, read_json
from studio.launch import server_command
from tests.core.conftest import tiny_recipe

KINDS = ("import", "chat", "train", "judge", "merge", "server", "browser", "rank")
USUAL = {"import": 40, "chat": 14, "train": 24, "judge": 14, "merge": 14, "server": 4, "browser": 4, "rank": 2}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


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
        tally.check(result_of(place, kind, job) == result_of(place, kind, None), f"{job.id} done again gave another result")
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
            tally.check(is_up(port), "the server did not come up")
        time.sleep(chance.uniform(0, 2))
        server.kill()
        server.wait()
        tally.kills += 1
        os.waitpid(child, 0)
        look_around(place.workspace, tally)
        tally.check(is_as_undisturbed(place, run), "a training beside a killed server gave another result")
        tally.done_again += run.state().state == "finished"
        shutil.rmtree(run.folder)
    return tally


def is_as_undisturbed(place: Place, run: Run) -> bool:
    """Whether a training gave the losses and adapters of one that nothing happened to."""
    return result_of(place, "train", run) == result_of(place, "train", None)


def kill_browsers(place: Place, kills: int, chance: random.Random) -> Tally:
    """Kill a Chromium that follows a training: the training ends as if nothing had been, and the studio serves on."""
    tally, port = Tally(), 20_000 + os.getpid() % 20_000
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is here; --kinds can leave the browser out")
    server = subprocess.Popen(server_command(port), cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True)
    try:
        tally.check(is_up(port), "the server did not come up")
        for number in range(kills):
            run = create_run(place.workspace, place.recipe, f"followed-{number}")
            child = begin(run)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
                browser = subprocess.Popen(
                    [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}",
                     "--remote-debugging-port=0", f"http://127.0.0.1:{port}/train?run={run.id}"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
                time.sleep(chance.uniform(0.2, 3))
                os.killpg(browser.pid, signal.SIGKILL)
                browser.wait()
            tally.kills += 1
            os.waitpid(child, 0)
            look_around(place.workspace, tally)
            tally.check(is_up(port), "the studio went with the browser")
            tally.check(is_as_undisturbed(place, run), "a training that was followed gave another result")
            tally.done_again += run.state().state == "finished"
            shutil.rmtree(run.folder)
    finally:
        server.kill()
        server.wait()
    return tally


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
        restart_job(run)
        wait_for_job(run)
        tally.check([record["update"] for record in run.metrics()] == list(range(1, 61)), "a resumed run lacks updates")
        tally.done_again += 1
        shutil.rmtree(run.folder)
    return tally


def kill_all(place: Place, wanted: dict[str, int], seed: int,
             on_kind: Callable[[dict[str, Tally]], None] | None = None) -> dict[str, Tally]:
    """As many kills of each kind as `wanted` says, at moments that `seed` decides; `on_kind` sees the tallies after each kind."""
    special = {"chat": kill_chats, "server": kill_servers, "browser": kill_browsers, "rank": kill_ranks}
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
    lines += [f"| {kind} | {one.kills} | {1000 * one.slowest_truth:.1f} ms | {one.done_again} | {len(one.faults)} |"
              for kind, one in tallies.items()]
    total = sum(one.kills for one in tallies.values())
    return "\n".join([*lines, f"| **all** | **{total}** | {1000 * max(one.slowest_truth for one in tallies.values()):.0f} ms | "
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
