"""Tokens a second and memory of a QLoRA training on one GPU: a plain transformers + PEFT loop, and Sweetspot's own paths.

    python benchmarks/train_gpu.py                      # the whole table, one process for each line; about six minutes on an H100
    python benchmarks/train_gpu.py --lines default fp8  # some lines of it
    python benchmarks/train_gpu.py --tiny --device cpu  # a rehearsal with a tiny model

The job is the one of the course: rank 64 on all linear layers, rows of 1,024 tokens, 16 rows an update, a model of random weights with
the shape of InternLM2-1.8B. Every token is trained, so the output head has all it can have to do. Needs bitsandbytes and, for the fast
lines, Triton (it comes with torch for NVIDIA).
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.data.encode import Encoded  # noqa: E402
from core.recipe.schema import Recipe  # noqa: E402
from core.train.fit import Accumulator, first_fit  # noqa: E402
from core.train.model import make_step, make_trainable  # noqa: E402
from core.train.ranks import ALONE  # noqa: E402

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model and of its training."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int
    tokens: int = 1024
    rows: int = 16
    rank: int = 64

    def matmul_flops_per_token(self) -> float:
        """Floating-point operations of one trained token: 2 for each weight on the way there and 2 on the way back, 6 for each
        trained one, and causal attention (2 products there, 5 back).
        """
        head_size = self.hidden // self.heads
        pairs = [(self.hidden, self.hidden), (self.hidden, self.key_heads * head_size), (self.hidden, self.key_heads * head_size),
                 (self.hidden, self.hidden), (self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)]
        frozen = self.layers * sum(a * b for a, b in pairs) + self.hidden * self.vocabulary
        trained = self.layers * sum(a + b for a, b in pairs) * self.rank
        attention = self.layers * 7 * self.tokens * self.hidden
        return 4.0 * frozen + 6.0 * trained + attention


COURSE = Shape(2048, 24, 16, 8, 8192, 92544)
SEVEN_B = Shape(4096, 32, 32, 32, 11008, 32000, rows=4)
TINY = Shape(64, 2, 4, 2, 96, 512, tokens=32, rows=4, rank=8)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        title: what is measured.
        measure: the function that does it.
        micro_batch: rows at a time of the plain loop.
        changes: recipe fields that differ from the job's own, by section.
        cap_gib: most memory that the process may take.
    """

    title: str
    measure: Callable[[Line, Shape, str], dict[str, Any]]
    micro_batch: int = 16
    changes: dict[str, dict[str, Any]] | None = None
    cap_gib: float = 0.0
    shape: Shape | None = None


def random_rows(shape: Shape, seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    return [Encoded(torch.randint(0, shape.vocabulary, (shape.tokens,), generator=generator).tolist(), [True] * shape.tokens, "", [])
            for _ in range(shape.rows)]


def build_model(shape: Shape, device: str) -> Any:
    """A Llama model of random weights on `device`, its layers in NF4 (on a GPU).

    It is made layer by layer, so a capped process never holds more than one layer's weights in 16 bits.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
                         num_key_value_heads=shape.key_heads, intermediate_size=shape.inner, vocab_size=shape.vocabulary,
                         max_position_embeddings=4096, tie_word_embeddings=False, attn_implementation="sdpa", dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head" and device.startswith("cuda"):
            parent, last = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), last, _four_bit(module, device))
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            parent, last = name.rsplit(".", 1)
            value = torch.ones(parameter.shape) if "norm" in name else torch.randn(parameter.shape, device=device) * 0.02
            setattr(model.get_submodule(parent), last, nn.Parameter(value.to(device, torch.bfloat16), requires_grad=False))
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    if device.startswith("cuda"):
        model.is_loaded_in_4bit = True  # what transformers sets, and PEFT asks for
    return model


def _four_bit(linear: nn.Linear, device: str) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True,
                      quant_type="nf4", device="meta")
    weight = torch.randn(linear.out_features, linear.in_features, device=device, dtype=torch.bfloat16) * 0.02
    made.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4").to(device)
    return made


def measure_plain(line: Line, shape: Shape, device: str) -> dict[str, Any]:
    """The loop that transformers and PEFT document: their forward, gradient accumulation, checkpointing as PEFT prepares it."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = prepare_model_for_kbit_training(build_model(shape, device), use_gradient_checkpointing=True,
                                            gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(r=shape.rank, lora_alpha=2 * shape.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    model.train()
    steps = shape.rows // line.micro_batch

    def update(rows: list[Encoded]) -> float:
        total = torch.zeros((), device=device)
        for first in range(0, shape.rows, line.micro_batch):
            ids = torch.tensor([row.ids for row in rows[first: first + line.micro_batch]], device=device)
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss / steps
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return _time_updates(update, shape, device)


def measure_ours(line: Line, shape: Shape, device: str) -> dict[str, Any]:
    """What the worker does with this recipe."""
    sections = {"model": {"quantization": "nf4"}, "method": {"rank": shape.rank, "alpha": 2 * shape.rank},
                "data": {"max_length": shape.tokens}, "schedule": {"effective_batch": shape.rows}}
    for section, fields in (line.changes or {}).items():
        sections[section] = {**sections.get(section, {}), **fields}
    if not device.startswith("cuda"):
        sections["model"] = {"quantization": "none"}
    recipe = Recipe.model_validate(sections)
    model = make_trainable(recipe, build_model(shape, device))
    model.train()
    with redirect_stdout(io.StringIO()) as said:
        step, is_packed = make_step(recipe, model, random_rows(shape, 0)[0].ids, device)
    accumulator = Accumulator(step, ALONE, first_fit(recipe, model, device), 0, device, is_packed)
    seeds = iter(range(10**6))

    def update(rows: list[Encoded]) -> float:
        loss = accumulator.run(rows, next(seeds))
        step.apply(2e-4)
        return loss

    found = _time_updates(update, shape, device)
    rows = min(accumulator.fit.rows or shape.rows, accumulator.fit.tokens // shape.tokens, shape.rows)
    return {**found, "path": said.getvalue().strip(), "rows_at_a_time": rows}


def measure_ceiling(line: Line, shape: Shape, device: str) -> dict[str, Any]:
    """Rate of one large bfloat16 product, and what it would mean for this job if nothing else took time."""
    size = 8192 if device.startswith("cuda") else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        a @ b
    _wait(device)
    began = time.perf_counter()
    for _ in range(40):
        a @ b
    _wait(device)
    rate = 40 * 2 * size**3 / (time.perf_counter() - began)
    return {"tflops": rate / 1e12, "tokens_per_second": rate / shape.matmul_flops_per_token()}


def _time_updates(update: Callable[[list[Encoded]], float], shape: Shape, device: str) -> dict[str, Any]:
    """Warm up with two updates, then time at least three and at least five seconds of them, each on rows of its own."""
    losses = [update(random_rows(shape, seed)) for seed in (1, 2)]
    _wait(device)
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < 5 and len(seconds) < 30):
        rows = random_rows(shape, 3 + len(seconds))
        began = time.perf_counter()
        losses.append(update(rows))
        _wait(device)
        seconds.append(time.perf_counter() - began)
    middle = sorted(seconds)[len(seconds) // 2]
    found = {"tokens_per_second": shape.rows * shape.tokens / middle, "seconds_per_update": middle, "updates": len(seconds),
             "spread": (max(seconds) - min(seconds)) / middle, "first_loss": losses[0], "last_loss": losses[-1]}
    if device.startswith("cuda"):
        found |= {"allocated_gib": torch.cuda.max_memory_allocated() / GIB, "reserved_gib": torch.cuda.max_memory_reserved() / GIB}
    return found


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


FAST, SAVE = {"speed": "fast"}, {"checkpointing": "on"}
LINES = {
    "ceiling": Line("one bfloat16 product, as tokens of this job", measure_ceiling),
    "plain-1": Line("transformers + PEFT, 1 row at a time", measure_plain, 1),
    "plain-16": Line("transformers + PEFT, 16 rows at a time", measure_plain),
    "default": Line("Sweetspot, default", measure_ours),
    "fp8": Line("Sweetspot, device.speed: fast (FP8)", measure_ours, changes={"device": FAST}),
    "saving": Line("Sweetspot, device.checkpointing: on", measure_ours, changes={"device": SAVE}),
    "one-row": Line("Sweetspot, device.micro_batch: 1", measure_ours, changes={"device": {"micro_batch": 1}}),
    "own-plain": Line("Sweetspot, device.speed: plain", measure_ours, changes={"device": {"speed": "plain"}}),
    "seven-b": Line("Sweetspot, Llama-2-7B's shape within 8 GiB", measure_ours,
                    changes={"device": {**SAVE, "micro_batch": 1}}, cap_gib=8.0, shape=SEVEN_B),
}


def run_line(name: str, is_tiny: bool, device: str) -> dict[str, Any]:
    """Measure one line in this process."""
    line = LINES[name]
    shape = line.shape or COURSE
    if is_tiny:
        shape, line = TINY, replace(line, micro_batch=min(line.micro_batch, TINY.rows))
    if line.cap_gib and device.startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(line.cap_gib * GIB / total)
    return line.measure(line, shape, device)


def run_lines(names: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each line in a process of its own, so that one that fails or hangs costs its own line only."""
    found = []
    for name in names:
        command = [sys.executable, __file__, "--one", name, "--device", args.device, *(["--tiny"] if args.tiny else [])]
        began = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit, check=False)
            answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-1500:]}
        except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
            answer = {"failed": str(error)[-300:]}
        found.append({"line": name, "title": LINES[name].title, **answer, "wall_seconds": round(time.perf_counter() - began, 1)})
        print(json.dumps(found[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=1))
    return found


def print_table(found: list[dict[str, Any]]) -> None:
    rates = {entry["line"]: entry.get("tokens_per_second") for entry in found}
    base = rates.get("plain-1")
    print(f"\n| {'line':60} | tokens/s | ratio to plain, 1 row | peak GiB allocated (reserved) |\n|---|---|---|---|")
    for entry in found:
        rate = entry.get("tokens_per_second")
        if rate is None:
            print(f"| {entry['title']:60} | failed: {(entry['failed'].strip() or '?').splitlines()[-1][:120]} | | |")
            continue
        ratio = f"{rate / base:.2f}" if base and LINES[entry["line"]].shape is None else ""
        memory = f"{entry['allocated_gib']:.2f} ({entry['reserved_gib']:.2f})" if "allocated_gib" in entry else ""
        print(f"| {entry['title']:60} | {rate:,.0f} | {ratio} | {memory} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to rehearse")
    parser.add_argument("--limit", type=float, default=150, help="seconds that a line may take")
    parser.add_argument("--out", type=Path, help="write the results here too, as JSON")
    parser.add_argument("--one", choices=LINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_line(args.one, args.tiny, args.device)))
        return
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "processor"
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}", flush=True)
    print_table(run_lines(args.lines, args))


if __name__ == "__main__":
    main()
