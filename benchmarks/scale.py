"""Tokens per second and memory on one GPU and on several, in one table.

    python benchmarks/scale.py                       # every job below, on 1, 2 and 4 GPUs, as far as there are so many
    python benchmarks/scale.py --gpus 1 2 --jobs course
    python benchmarks/scale.py --cpu --gpus 1 2 3 --jobs tiny        # tries the script itself, without a GPU

Every line is a fresh start through torchrun of what `sweetspot train` runs (core.train), on random weights of a model's shape: nothing
is downloaded. Rows per GPU stay the same, so twice the GPUs do twice the work; the ratio is to the same job on one GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "max_position_embeddings": 32_768, "initializer_range": 0.02}
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "vocab_size": 512, "tie_word_embeddings": False},
    # InternLM2-1.8B, Llama-2-7B and Qwen2.5-14B, as Llamas
    "1.8b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
             "num_key_value_heads": 8, "vocab_size": 92_544, "tie_word_embeddings": False},
    "7b": {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32_000, "tie_word_embeddings": False},
    "14b": {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "vocab_size": 152_064, "tie_word_embeddings": False},
}
# job -> its variants, each with what it changes in a recipe; `gpus` are the numbers of GPUs that it makes sense on.
LORA = {"kind": "lora", "rank": 64, "alpha": 128}
JOBS: dict[str, list[dict[str, Any]]] = {
    "course": [
        {"name": "course, data parallel", "shape": "1.8b", "method": LORA, "zero": 0, "rows": 16, "gpus": (1, 2, 4, 8)},
        {"name": "course, ZeRO-2", "shape": "1.8b", "method": LORA, "zero": 2, "rows": 16, "gpus": (2, 4, 8)},
    ],
    "7b": [
        {"name": "7B full, one GPU", "shape": "7b", "method": {"kind": "full"}, "zero": 0, "rows": 4, "gpus": (1,), "saves": True},
        {"name": "7B full, ZeRO-3", "shape": "7b", "method": {"kind": "full"}, "zero": 3, "rows": 4, "gpus": (2, 4, 8), "saves": True},
    ],
    "14b": [
        {"name": "14B full, ZeRO-3", "shape": "14b", "method": {"kind": "full"}, "zero": 3, "rows": 4, "gpus": (2, 4, 8), "saves": True},
    ],
    "tiny": [
        {"name": "tiny, data parallel", "shape": "tiny", "method": LORA | {"rank": 4}, "zero": 0, "rows": 4, "gpus": (1, 2, 3)},
        {"name": "tiny full, ZeRO-3", "shape": "tiny", "method": {"kind": "full"}, "zero": 3, "rows": 4, "gpus": (2, 3), "saves": True},
    ],
}
TOKENS = 1024
WARM_UP, MEASURED = 3, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=["course", "7b", "14b"])
    parser.add_argument("--quantization", choices=["none", "nf4"], default="nf4" if find_spec("bitsandbytes") else "none",
                        help="of the base model in LoRA jobs")
    parser.add_argument("--speed", choices=["auto", "plain", "fast"], default="auto")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a line may take")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a row")
    parser.add_argument("--out", type=Path, help="also write the lines to this file, as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure(json.loads(asked.one))
        return
    there = 10**6 if asked.cpu else gpu_count()
    lines = []
    for job in asked.jobs:
        for variant in JOBS[job]:
            for count in asked.gpus:
                if count in variant["gpus"] and count <= there:
                    lines.append(run_variant({**variant, "count": count, "cpu": asked.cpu, "tokens": asked.tokens, "speed": asked.speed,
                                              "limit": asked.limit,
                                              "quantization": asked.quantization if variant["method"]["kind"] == "lora" else "none"}))
                    show(lines[-1:], [])
                    if asked.out:
                        asked.out.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print()
    show(lines, lines)


def gpu_count() -> int:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


def run_variant(variant: dict[str, Any]) -> dict[str, Any]:
    """One line of the table; a variant that fails says why and leaves the others alone."""
    with tempfile.TemporaryDirectory() as folder:
        variant["answer"] = str(Path(folder) / "answer.json")
        began = time.monotonic()
        done = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(variant["count"]), __file__,
             "--one", json.dumps(variant)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={"OMP_NUM_THREADS": "1", "MKL_THREADING_LAYER": "GNU"} | os.environ)
        try:
            said, _ = done.communicate(timeout=variant["limit"])
        except subprocess.TimeoutExpired:
            kill_tree(done.pid)  # the ranks, each in a session of its own, would keep the GPUs and the pipe
            return {**variant, "problem": f"not done after {variant['limit']:.0f} s", "log": done.communicate()[0][:8000]}
        answer = Path(variant["answer"])
        if answer.exists():
            return {**variant, **json.loads(answer.read_text(encoding="utf-8")), "start_to_end_seconds": time.monotonic() - began}
        errors = [line for line in said.splitlines() if "Error" in line]
        return {**variant, "problem": (errors or said.splitlines() or ["ended without a word"])[0][-200:], "log": said[-4000:]}


def kill_tree(pid: int) -> None:
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def measure(variant: dict[str, Any]) -> None:
    """What each rank does: build, warm up, train, and rank 0 writes the answer."""
    faulthandler.dump_traceback_later(variant["limit"] - 10)  # where it hangs, in the log that a line keeps when it is not done in time
    import torch

    from core.train.batches import Fit
    from core.train.fit import Accumulator, first_fit
    from core.train.model import make_step
    from core.train.ranks import Ranks

    started = time.monotonic()
    ranks = Ranks.join("cpu" if variant["cpu"] else "cuda")

    def reached(what: str) -> None:
        if ranks.is_first:
            print(f"{time.monotonic() - started:.1f} s: {what}", flush=True)

    device = "cpu" if variant["cpu"] else f"cuda:{ranks.local}"
    recipe = recipe_of(variant)
    model = random_model(recipe, variant, device, ranks)
    reached("the model is made")
    rows = random_rows(variant["rows"] * ranks.count, variant)
    step, is_packed = make_step(recipe, model, rows[0].ids, device, ranks)
    reached("it is ready to be trained")
    fit = first_fit(recipe, model, device, ranks.count)
    fit = Fit(**ranks.told_by_first(vars(fit)))
    accumulator = Accumulator(step, ranks, fit, 0, device, is_packed)
    losses = []
    for update in range(WARM_UP + MEASURED):
        if update == WARM_UP:
            began = now(device, ranks)
        losses.append(accumulator.run(rows, update))
        step.apply(1e-4)
        reached(f"update {update + 1} of {WARM_UP + MEASURED}")
    seconds = (now(device, ranks) - began) / MEASURED
    memory = torch.tensor(0 if variant["cpu"] else torch.cuda.max_memory_allocated())
    torch.distributed.all_reduce(memory, torch.distributed.ReduceOp.MAX)
    if ranks.is_first:
        Path(variant["answer"]).write_text(json.dumps({
            "tokens_per_second": sum(len(row.ids) for row in rows) / seconds, "seconds": seconds, "memory_bytes": int(memory),
            "rows_at_a_time": accumulator.fit.rows, "first_loss": losses[0], "last_loss": losses[-1],
            "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()),
            "device": "cpu" if variant["cpu"] else torch.cuda.get_device_name()}), encoding="utf-8")
    ranks.wait_for_all()
    ranks.leave()


def now(device: str, ranks: Any) -> float:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    ranks.wait_for_all()
    return time.perf_counter()


def recipe_of(variant: dict[str, Any]) -> Any:
    from core.recipe.files import build_recipe

    return build_recipe({
        "method": variant["method"], "model": {"quantization": variant["quantization"]}, "data": {"max_length": variant["tokens"]},
        "device": {"zero": variant["zero"], "kind": "cpu" if variant["cpu"] else "cuda", "speed": variant["speed"],
                   "checkpointing": "on" if variant.get("saves") else "off"}})


def random_model(recipe: Any, variant: dict[str, Any], device: str, ranks: Any) -> Any:
    """A model of the shape with random weights, ready to be trained.

    The quantised one goes through a folder, as bitsandbytes quantises while it reads; whole ones are made where they are needed, at stage
    3 divided among the ranks at once.
    """
    import torch
    from random_model import write_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    from core.train.model import announce_division, make_trainable, prepare_model, weights_dtype

    config = AutoConfig.for_model(**LLAMA, **SHAPES[variant["shape"]])
    torch.manual_seed(0)
    if variant["quantization"] != "none":
        folder = Path(tempfile.gettempdir()) / f"random-{variant['shape']}"
        if ranks.is_first and not (folder / "tokenizer.json").exists():
            with torch.device(device):
                AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="100GB")
            write_tokenizer(folder)
        ranks.wait_for_all()
        return prepare_model(recipe, folder, device)
    if recipe.device.zero < 3:
        with torch.device(device):
            return make_trainable(recipe, AutoModelForCausalLM.from_config(config, dtype=weights_dtype(recipe, device)))
    settings = announce_division(recipe, device)
    with patch.object(PreTrainedModel, "_initialize_weights", lambda *_, **__: None):  # drawn below, each share where it lies
        model = AutoModelForCausalLM.from_config(config, dtype=weights_dtype(recipe, device))
    for name, weight in model.named_parameters():
        weight.ds_tensor.fill_(1.0) if "norm" in name else weight.ds_tensor.normal_(0.0, config.initializer_range)
    model.zero_settings = settings
    return make_trainable(recipe, model)


def random_rows(count: int, variant: dict[str, Any]) -> list[Any]:
    import random

    from core.data.encode import Encoded

    draw, length, largest = random.Random(1), variant["tokens"], SHAPES[variant["shape"]]["vocab_size"]
    return [Encoded([draw.randrange(largest) for _ in range(length)], [True] * length, "", []) for _ in range(count)]


def show(lines: list[dict[str, Any]], all_lines: list[dict[str, Any]]) -> None:
    """The lines as a table; `all_lines` give the one-GPU rates that the ratios are to."""
    alone = {(line["shape"], line["method"]["kind"]): line["tokens_per_second"] for line in all_lines
             if line["count"] == 1 and "tokens_per_second" in line}
    if all_lines:
        print(f"{'job':28}{'base':>6}{'GPUs':>6}{'rows':>6}{'tokens/s':>12}{'ratio':>8}{'GiB each':>10}{'s/update':>10}")
    for line in lines:
        start = f"{line['name']:28}{line['quantization']:>6}{line['count']:>6}{line['rows'] * line['count']:>6}"
        if "problem" in line:
            print(f"{start}  {line['problem']}", flush=True)
            continue
        one = alone.get((line["shape"], line["method"]["kind"]))
        ratio = f"{line['tokens_per_second'] / one:.2f}" if one else "-"
        memory = line["memory_bytes"] / 2**30
        print(f"{start}{line['tokens_per_second']:>12,.0f}{ratio:>8}{memory:>10.1f}{line['seconds']:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
