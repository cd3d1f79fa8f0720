"""How far estimates are from real runs: `python benchmarks/estimates.py`; on a GPU, where no model can be fetched:
`python benchmarks/estimates.py --device cuda --random internlm2-1.8b --length 1024`.

For each recipe: the estimate by arithmetic, then the estimate after a trial, then the run itself, each as a job of its own as the studio
does it. Prints one table of memory and time with their errors, and the worst of each. Needs the embedded model, or `--model FOLDER`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from random_model import SHAPES, save_random_rows, write_random_model

from core.data.persona import Persona
from core.data.store import save_persona
from core.jobs.launch import wait_for_job
from core.models.catalogue import find_local_base
from core.models.prepare import prepare_once
from core.recipe import Recipe, build_recipe, change_recipe
from core.recipe.forecast import forecast
from core.recipe.pace import estimate_seconds
from core.recipe.trial import start_trial
from core.train.create import start_run
from core.workspace import Workspace

# What differs from recipe to recipe: method, rows at a time, length, memory. `updates` keeps each run near half a minute on two cores.
RECIPES: dict[str, dict[str, Any]] = {
    "LoRA, 4 rows": {},
    "LoRA, 8 rows, packed": {"schedule.effective_batch": 8, "data.packing": True},
    "LoRA, 8 rows, recomputed": {"schedule.effective_batch": 8, "device.checkpointing": "on"},
    "LoRA rank 128, 16 rows, 4 at a time": {"method.rank": 128, "method.alpha": 128, "schedule.effective_batch": 16,
                                            "device.micro_batch": 4, "schedule.updates": 6},
    "LoRA on attention, 2 rows": {"method.targets": ["q_proj", "v_proj"], "method.rank": 8, "schedule.effective_batch": 2},
    "DoRA, 4 rows": {"method.dora": True, "method.rank": 8, "method.alpha": 16},
    "full, 4 rows": {"method.kind": "full", "schedule.learning_rate": 1e-5, "snapshots.count": 1},
    "QLoRA (nf4), 4 rows": {"model.quantization": "nf4", "schedule.updates": 6},
}
UPDATES = 10
_CALM_PERCENT, _LONGEST_WAIT = 20.0, 60
_DISTURBED = 0.1


@dataclass(frozen=True)
class Compared:
    """One recipe: what was said and what was. Bytes and seconds; `others` is the share of the machine that other programs took."""

    name: str
    counted_bytes: int
    counted_seconds: float | None
    tried_bytes: int
    tried_seconds: float
    real_bytes: int
    real_seconds: float
    others: float

    def row(self) -> list[str]:
        def error(said: float | None, was: float) -> str:
            return "-" if said is None else f"{100 * (said / was - 1):+.0f} %"

        memory, seconds = f"{self.real_bytes / 1e9:.2f}", f"{self.real_seconds:.0f}"
        return [self.name, memory, error(self.counted_bytes, self.real_bytes), error(self.tried_bytes, self.real_bytes),
                seconds, error(self.counted_seconds, self.real_seconds), error(self.tried_seconds, self.real_seconds),
                f"{100 * self.others:.0f} %"]


def base_recipe(model: str, dataset: str, length: int, device: str) -> Recipe:
    return build_recipe({
        "model": {"source": model}, "method": {"rank": 16, "alpha": 32},
        "data": {"sources": [{"dataset": dataset}], "max_length": length},
        "schedule": {"effective_batch": 4, "learning_rate": 2e-4}, "snapshots": {"count": 3},
        "device": {"kind": device}})


def compare(workspace: Workspace, name: str, recipe: Recipe, attempts: int) -> Compared:
    """Estimate, try, run; again when other programs took too much of the machine meanwhile. The quietest attempt counts."""
    found = [_compare_once(workspace, name, recipe)]
    while len(found) < attempts and found[-1].others > _DISTURBED:
        found.append(_compare_once(workspace, name, recipe))
    return min(found, key=lambda one: one.others)


def _compare_once(workspace: Workspace, name: str, recipe: Recipe) -> Compared:
    shutil.rmtree(workspace.cache / "trials", ignore_errors=True)
    wait_until_calm()
    with Disturbance() as others:
        counted = forecast(workspace, recipe)
        wait_for_job(start_trial(workspace, recipe))
        tried = forecast(workspace, recipe)
        run = start_run(workspace, recipe, "estimates")
        state = wait_for_job(run)
    base = find_local_base(workspace, recipe.model.source)
    assert base and counted.memory and tried.memory_bytes and tried.seconds and state.started and state.ended
    seconds = estimate_seconds(base, recipe, counted.device, counted.tokens or 0, counted.trained_tokens or 0, counted.longest_tokens or 1,
                               counted.plan.looks)
    return Compared(name, counted.memory.total, seconds, tried.memory_bytes, tried.seconds,
                    max(record["memory_bytes"] for record in run.metrics()), state.ended - state.started, others.share)


class Disturbance:
    """The share of all cores that programs other than this one and its jobs take during the block."""

    share = 0.0

    def __enter__(self) -> Disturbance:
        self.began, self.busy, self.own = time.monotonic(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        cores = (time.monotonic() - self.began) * (psutil.cpu_count() or 1)
        self.share = max(0.0, (_busy_seconds() - self.busy - _own_seconds() + self.own) / cores)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + times.nice


def _own_seconds() -> float:
    """Of this process and of the jobs that have ended; an ended child counts once it was waited for."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.status() == psutil.STATUS_ZOMBIE:
                child.wait(timeout=5)
    return sum(os.times()[:4])


def wait_until_calm() -> None:
    """Other programs on the machine would be measured too; after some minutes they are."""
    for _ in range(_LONGEST_WAIT // 3):
        if psutil.cpu_percent(interval=3) < _CALM_PERCENT:
            return


def print_table(found: list[Compared]) -> None:
    head = ["recipe", "memory, GB", "arithmetic", "trial", "time, s", "arithmetic", "trial", "other programs"]
    for cells in (head, ["---"] * len(head), *(one.row() for one in found)):
        print("| " + " | ".join(cells) + " |", flush=True)
    memory = max(abs(one.tried_bytes / one.real_bytes - 1) for one in found)
    seconds = max(abs(one.tried_seconds / one.real_seconds - 1) for one in found)
    print(f"worst after a trial: memory {100 * memory:.0f} %, time {100 * seconds:.0f} %, over {len(found)} recipes")


def prepare(workspace: Workspace, arguments: argparse.Namespace) -> tuple[str, str]:
    """The model and the dataset to train on, made where they are not there yet."""
    if arguments.random:
        folder, dataset = workspace.models / arguments.random, f"random-{arguments.length}"
        if not folder.exists():
            write_random_model(folder, arguments.random)
        if not (workspace.datasets / dataset).exists():
            save_random_rows(workspace, dataset, 200, arguments.length)
        return str(folder), dataset
    if find_local_base(workspace, arguments.model) is None:
        wait_for_job(prepare_once(workspace))
    if not (workspace.datasets / "alex").exists():
        save_persona(workspace, Persona(name="Alex", languages=["en", "zh"]), [], "alex")
    return arguments.model, "alex"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="embedded", help="a model folder, or a name in the workspace")
    parser.add_argument("--random", choices=tuple(SHAPES), help="random weights in this shape, and random rows")
    parser.add_argument("--length", type=int, default=256, help="longest row, in tokens")
    parser.add_argument("--workspace", type=Path, help="use this one instead of a temporary one")
    parser.add_argument("--updates", type=int, help=f"of every recipe; {UPDATES} or what the recipe says where not given")
    parser.add_argument("--attempts", type=int, default=3, help="at most, where other programs disturb")
    parser.add_argument("--only", action="append", default=[], help="a recipe's name, or a part of it; may be repeated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace.open(arguments.workspace or Path(temporary))
        model, dataset = prepare(workspace, arguments)
        found = []
        for name, changes in RECIPES.items():
            if arguments.only and not any(part in name for part in arguments.only):
                continue
            changed = {"schedule.updates": UPDATES} | changes | ({"schedule.updates": arguments.updates} if arguments.updates else {})
            recipe = base_recipe(model, dataset, arguments.length, arguments.device)
            found.append(compare(workspace, name, change_recipe(recipe, changed), arguments.attempts))
            print("done:", " ".join(found[-1].row()), flush=True)
        print(json.dumps([vars(one) for one in found])) if arguments.json else print_table(found)


if __name__ == "__main__":
    main()
