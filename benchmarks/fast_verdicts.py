"""Does the judge say the same of checkpoints trained by the fast path? `python benchmarks/fast_verdicts.py` on a GPU.

Each line is a whole run as the studio does it: a job of its own trains the embedded model on the identity lesson, another judges every
snapshot. The same data, the same seeds; only `device.speed` differs. Seeds show how far two honest runs are apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.data.persona import Persona  # noqa: E402
from core.data.store import start_persona  # noqa: E402
from core.jobs.launch import start_job, wait_for_job  # noqa: E402
from core.lesson import judge_job_of  # noqa: E402
from core.models.prepare import prepare_once  # noqa: E402
from core.recipe.files import change_recipe, load_preset  # noqa: E402
from core.train.create import start_run  # noqa: E402
from core.workspace import Workspace  # noqa: E402

PRESETS = {"identity-lesson-gpu": "answers of its own mixed in", "identity-lesson-cpu": "the name alone"}
HEAD = ("data", "speed", "seed", "seconds", "verdict", "pick", "hit", "leak", "last: hit", "leak", "last loss")


def one_line(workspace: Workspace, preset: str, speed: str, seed: int, device: str) -> list[str]:
    """Train, judge, and what came of it. Hit and leak are shares of probes, the loss nats a token, seconds the training job's."""
    recipe = load_preset(preset)
    changes: dict[str, Any] = {"device.kind": device, "device.speed": speed, "schedule.seed": seed}
    if device == "cuda":
        changes["model.dtype"] = "bfloat16"
    run = start_run(workspace, change_recipe(recipe, changes), f"{speed}-{seed}")
    state = wait_for_job(run)
    judging = judge_job_of(workspace, run)
    start_job(judging)
    wait_for_job(judging)
    verdict = run.verdict()
    assert verdict and state.started and state.ended
    pick, last, metrics = verdict["pick"], verdict["last"], run.metrics()
    taken = [line for line in (run.folder / "log.txt").read_text(encoding="utf-8").splitlines() if "fast" in line.lower()]
    print(f"{preset} {speed} {seed}: {taken[:2]}", flush=True)
    return [PRESETS[preset], speed, str(seed), f"{state.ended - state.started:.0f}", verdict["verdict"], f"step {pick['step']}",
            f"{pick['hit']:.2f}", f"{pick['leak']:.2f}", f"{last['hit']:.2f}", f"{last['leak']:.2f}", f"{metrics[-1]['loss']:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--speeds", nargs="+", default=["plain", "auto", "fast"])
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=list(PRESETS))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--workspace", type=Path, help="use this one instead of a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace.open(args.workspace or Path(temporary))
        wait_for_job(prepare_once(workspace))
        wait_for_job(start_persona(workspace, Persona(name="Alex"), "identity"))
        lines = [one_line(workspace, preset, speed, seed, args.device)
                 for preset in args.presets for speed in args.speeds for seed in args.seeds]
    for cells in (HEAD, ["---"] * len(HEAD), *lines):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
