"""Train and ask all runs of the study, several at once; finished ones are skipped, so it goes on where it was.

    python -m benchmarks.pick.run --dir results                       # everything, on a GPU
    python -m benchmarks.pick.run --dir results --workers 7 --deadline 540 --pack OUT
    python -m benchmarks.pick.run --dir trial --device cpu --rehearse --only s04-alex
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import queue
import sys
import tarfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ is None or __package__ == "":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pick.design import RUNS, STUDENT, StudyRun
from benchmarks.pick.results import finished, result_path

# A file that is carried to another machine should not be larger.
_PACK_BYTES = 14_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the results lie, one file a run")
    parser.add_argument("--work", type=Path, help="room for snapshots, best in memory; `work` in --dir by default")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that the workers share out")
    parser.add_argument("--only", nargs="+", help="these runs only, by id or its beginning")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--pack", type=Path, help="also put the results into few files in this folder")
    parser.add_argument("--rehearse", action="store_true", help="little of everything, to see whether it works")
    args = parser.parse_args()
    args.work = args.work or args.dir / "work"
    args.dir.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in RUNS if not args.only or any(run.id.startswith(name) for name in args.only)]
    runs = _in_turn([run for run in wanted if run.id not in finished(args.dir)])
    print(f"{len(wanted) - len(runs)} of {len(wanted)} runs are finished already", flush=True)
    failed = run_all(runs, args)
    left = [run.id for run in wanted if run.id not in finished(args.dir)]
    print(f"{len(wanted) - len(left)} runs finished, {len(failed)} failed; left: {' '.join(left) or 'none'}", flush=True)
    raise SystemExit(bool(left))


def _in_turn(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """One run of the student, so that it is made while others go on; then the longest; then both splits in turn; the student's last."""
    ordered = sorted(runs, key=lambda run: (run.model == STUDENT, run.method != "full", len(run.persona.get("languages", [])) < 2,
                                            run.id[1:]))
    first = next((run for run in ordered if run.model == STUDENT), None)
    return [first, *(run for run in ordered if run is not first)] if first else ordered


def run_all(runs: Sequence[StudyRun], args: argparse.Namespace) -> list[str]:
    """Let workers take the runs one by one; returns the ids of those that failed."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for run in runs:
        todo.put(run.id)
    ends = time.time() + args.deadline if args.deadline != float("inf") else None
    count = max(1, min(args.workers, len(runs)))
    workers = [context.Process(target=_work, args=(number, args, ends, todo, done)) for number in range(count)]
    for worker in workers:
        worker.start()
    failed, packer = [], Packer(args.pack) if args.pack else None
    while any(worker.is_alive() for worker in workers) or not done.empty():
        try:
            name, problem = done.get(timeout=2)
        except queue.Empty:
            continue
        print(f"{time.monotonic() - began:6.0f} s  {name}  {problem or 'done'}", flush=True)
        if problem:
            failed.append(name)
        elif packer:
            packer.add(result_path(args.dir, name))
    return failed


def _work(number: int, args: argparse.Namespace, ends: float | None, todo: Any, done: Any) -> None:
    """One worker: models are prepared by the first that needs them."""
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if args.device == "cuda" and args.gpus > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % args.gpus)  # before anything here imports torch
    sys.stdout = (args.dir / f"worker-{number}.log").open("a", encoding="utf-8", buffering=1)
    from benchmarks.pick.measure import Effort, measure
    from benchmarks.pick.models import model_folder

    effort = Effort(tokens=12, seeds=(1,), most_probes=14, most_updates=4, most_snapshots=2) if args.rehearse else Effort()
    by_id = {run.id: run for run in RUNS}
    while ends is None or time.time() < ends:
        try:
            run = by_id[todo.get(timeout=5)]
        except queue.Empty:
            return
        try:
            began = time.monotonic()
            folder = model_folder(run.model, args.dir, args.device, args.rehearse)
            result = measure(run, folder, args.work, args.device, effort)
            result["seconds"]["all"] = round(time.monotonic() - began, 2)
            target = result_path(args.dir, run.id)
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_suffix(".half")
            half.write_bytes(gzip.compress(json.dumps(result, ensure_ascii=False).encode(), 6))
            half.replace(target)
            done.put((run.id, ""))
        except Exception as error:  # one run that fails must not cost the others
            (args.dir / f"failed-{run.id}.txt").write_text(traceback.format_exc(), encoding="utf-8")
            done.put((run.id, f"failed: {type(error).__name__}: {str(error)[:200]}"))


class Packer:
    """Puts results into `results-N.tar` files of a bounded size, one by one as they come, so that nothing is lost at a sudden end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.number = len(list(folder.glob("results-*.tar")))

    def add(self, path: Path) -> None:
        target = self.folder / f"results-{self.number}.tar"
        if target.exists() and target.stat().st_size + path.stat().st_size > _PACK_BYTES:
            self.number += 1
            target = self.folder / f"results-{self.number}.tar"
        with tarfile.open(target, "a") as archive:
            archive.add(path, path.name)


if __name__ == "__main__":
    main()
