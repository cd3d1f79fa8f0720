"""Does the fast path learn as well? The loss curves of every way to hold the weights beside that of transformers + PEFT.

    python benchmarks/fast_curves.py MODEL_FOLDER ROWS.json [--updates 60] [--device cuda] [--out curves.json]

ROWS.json is a list of {"instruction", "input", "output"}, as the Alpaca sets are. The same rows in the same order, from the same
start: a QLoRA training (on a processor LoRA, without NF4) of rank 64 on all linear layers, 16 rows an update. The last 64 rows are
held out; their loss is computed by the plain path for all. The plain path is run twice, with two seeds for the adapters' start, to
show how far two honest trainings are apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.data.encode import Encoded, Encoder  # noqa: E402
from core.models.load import load_model  # noqa: E402
from core.recipe.schema import ScheduleSection  # noqa: E402
from core.train.fast.model import FastModel  # noqa: E402
from core.train.fast.step import FastStep  # noqa: E402
from core.train.ranks import ALONE  # noqa: E402
from core.train.step import PlainStep  # noqa: E402
from core.train.update import Batch, collate, summed_loss, trained_targets  # noqa: E402

ROWS_PER_UPDATE, HELD_OUT, MAX_LENGTH, RANK = 16, 64, 512, 64
# Name, how the fast path holds the weights (None: the plain path), and the seed of the adapters' start.
VARIANTS = (("plain", None, 0), ("exact", "exact", 0), ("nf4, recomputed", "nf4", 0), ("fp8", "fp8", 0), ("plain, other seed", None, 1))


def read_rows(path: Path, encoder: Encoder) -> list[Encoded]:
    rows = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
        rows.append(encoder.encode([{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}], "all",
                                   MAX_LENGTH))
    return [row for row in rows if trained_targets(row)]


def load_adapted(folder: Path, device: str, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    is_gpu = device.startswith("cuda")
    model = load_model(folder, torch.bfloat16 if is_gpu else torch.float32, device, "nf4" if is_gpu else "none")
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")).train()


def plain_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Summed loss through transformers and PEFT."""
    device = batch.ids.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return summed_loss(model.get_base_model(), batch)


def train(model: Any, storage: Any, rows: Sequence[Encoded], updates: int, pad_id: int, device: str) -> list[float]:
    """The loss before each update, nats a token."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if storage:
        fast = FastModel(model, storage, storage == "nf4", torch.bfloat16 if device.startswith("cuda") else torch.float32)
        step: PlainStep = FastStep(fast, parameters, ScheduleSection(), ALONE)
    else:
        step = PlainStep(lambda batch: plain_loss(model, batch), parameters, ScheduleSection(), ALONE)
    curve = []
    for update in range(updates):
        chosen = [rows[(update * ROWS_PER_UPDATE + place) % len(rows)] for place in range(ROWS_PER_UPDATE)]
        targets = sum(map(trained_targets, chosen))
        losses = [step.backward(collate(part, pad_id, device, bool(storage)), 1 / targets, False) for part in (chosen[:8], chosen[8:])]
        curve.append(float(sum(losses)) / targets)
        step.apply(2e-4)
    return curve


@torch.no_grad()
def held_out_loss(model: Any, rows: Sequence[Encoded], pad_id: int, device: str) -> float:
    total = sum(float(plain_loss(model, collate(rows[first: first + 8], pad_id, device))) for first in range(0, len(rows), 8))
    return total / sum(map(trained_targets, rows))


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    encoder = Encoder.from_folder(args.model)
    rows = read_rows(args.rows, encoder)
    rows, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    found: dict[str, Any] = {}
    for name, storage, seed in VARIANTS:
        began = time.perf_counter()
        model = load_adapted(args.model, args.device, seed)
        before = held_out_loss(model, held_out, encoder.pad_id(), args.device)
        curve = train(model, storage, rows, args.updates, encoder.pad_id(), args.device)
        found[name] = {"curve": curve, "held_out_before": before,
                       "held_out": held_out_loss(model, held_out, encoder.pad_id(), args.device)}
        say(f"{name}: {time.perf_counter() - began:.1f} s")
        if args.out:
            args.out.write_text(json.dumps(found))
    return found


def print_table(found: dict[str, Any]) -> None:
    plain = found["plain"]
    names = list(found)
    print("| update | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for update in range(0, len(plain["curve"]), max(1, len(plain["curve"]) // 12)):
        print(f"| {update + 1} | " + " | ".join(f"{found[name]['curve'][update]:.4f}" for name in names) + " |")
    print("| held-out loss before | " + " | ".join(f"{found[name]['held_out_before']:.4f}" for name in names) + " |")
    print("| held-out loss after | " + " | ".join(f"{found[name]['held_out']:.4f}" for name in names) + " |")
    gaps = [max(abs(a - b) for a, b in zip(found[name]["curve"], plain["curve"], strict=True)) for name in names]
    print("| largest distance from plain | " + " | ".join(f"{gap:.4f}" for gap in gaps) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print_table(measure(args, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
