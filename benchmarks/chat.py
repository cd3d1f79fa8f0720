"""What chatting costs on this machine: `python benchmarks/chat.py`. Uses the embedded model of the workspace.

Prints ratios inside one run, medians of rounds that take turns: of time, and of processor time, which stays the same when other programs
want the processor too:

    three panes of one base in one batch, and one after another, against one pane
    the next turn of a conversation with what was read kept, against reading it anew
    reading a prompt with oneDNN's products, against MKL's
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from core.chat import thin
from core.chat.batch import Batch, Part
from core.chat.engine import Engine, Sampling
from core.chat.kept import KeptCaches
from core.chat.stacked import Adapter, stack_adapters, unstack_adapters
from core.chat.thin import use_thin_products
from core.data.encode import Encoder
from core.models.catalogue import find_base
from core.models.load import choose_device, choose_dtype, linear_targets, load_model
from core.workspace import Workspace

RANK = 8
TURN = "Tell me about the history of the city you like most, its rivers, its bridges, its people, and what they eat in winter. "


class Cost(NamedTuple):
    """What something took; the processor's seconds are those of all threads."""

    seconds: float
    processor_seconds: float


class Bench:
    """The embedded model with adapters of random numbers beside it."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.encoder = Encoder.from_folder(folder)
        self.device = choose_device("auto")
        self.model = load_model(folder, choose_dtype("auto", self.device), self.device)
        self.adapters = [Adapter("base"), *(Adapter(str(seed), self._write_adapter(scratch / str(seed), seed)) for seed in (1, 2))]
        use_thin_products(self.model)

    def _write_adapter(self, folder: Path, seed: int) -> Path:
        """A LoRA adapter over every linear layer, small enough that the answers stay answers."""
        folder.mkdir()
        random = torch.Generator().manual_seed(seed)
        targets, tensors = set(linear_targets(self.model)), {}
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in targets and isinstance(module, torch.nn.Linear):
                tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, module.in_features, generator=random) * 0.02
                tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(module.out_features, RANK, generator=random) * 0.02
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
        return folder

    def batch(self, adapters: list[Adapter], kept: KeptCaches | None = None) -> Batch:
        unstack_adapters(self.model)
        engine = Engine(self.model, self.encoder.end_ids, self.encoder.pad_id(), stack_adapters(self.model, adapters))
        return Batch(engine, KeptCaches(0) if kept is None else kept)

    def seconds(self, batch: Batch, prompts: list[list[int]], tokens: int) -> Cost:
        """Time of so many tokens in each pane; ends are not looked at, so all rounds do the same work."""
        parts = [Part(slot, slot, prompt, Sampling()) for slot, prompt in enumerate(prompts)]
        batch.join(parts)
        began = Cost(time.monotonic(), time.process_time())
        for _ in range(tokens):
            for picked in batch.step():
                picked.part.ids.append(picked.token)
        took = Cost(time.monotonic() - began.seconds, time.process_time() - began.processor_seconds)
        for part in parts:
            batch.leave(part)
        batch.step()
        return took

    def prompt(self, repeats: int = 1) -> list[int]:
        return self.encoder.encode_prompt([{"role": "user", "content": TURN * repeats}])


def panes(bench: Bench, rounds: int, tokens: int) -> None:
    """Three panes against one."""
    together, apart, alone = [], [], []
    for _ in range(rounds):
        each = [bench.seconds(bench.batch([adapter]), [bench.prompt()], tokens) for adapter in bench.adapters]
        together.append(bench.seconds(bench.batch(bench.adapters), [bench.prompt()] * 3, tokens))
        apart.append(Cost(*map(sum, zip(*each, strict=True))))
        alone.append(Cost(*map(statistics.fmean, zip(*each, strict=True))))
    one = statistics.median(cost.seconds for cost in alone)
    print(f"one pane, {tokens} tokens                       {one:6.2f} s  ({tokens / one:.1f} tokens per second)")
    compare("three panes in one batch / one pane", together, alone)
    compare("three panes one after another / one pane", apart, alone)


def turns(bench: Bench, rounds: int) -> None:
    """The first token of the next turn, at a history of about a thousand tokens."""
    kept, anew = [], []
    history = bench.prompt(40)
    following = history + bench.prompt()
    memory = KeptCaches(2e9)
    for _ in range(rounds):
        memory.clear()
        batch = bench.batch(bench.adapters[:1], memory)
        bench.seconds(batch, [history], 1)
        kept.append(bench.seconds(batch, [following], 1))
        anew.append(bench.seconds(bench.batch(bench.adapters[:1]), [following], 1))
    compare(f"first token after {len(following)} tokens: {len(history)} kept / all read", kept, anew)


def products(bench: Bench, rounds: int) -> None:
    """Reading a prompt with the product of `core.models.products` and with torch's usual one."""
    fast, usual, batch = [], [], bench.batch(bench.adapters[:1])
    chosen = thin.product
    for _ in range(rounds):
        fast.append(bench.seconds(batch, [bench.prompt(20)], 1))
        usual.append(_with_product(torch.nn.functional.linear, lambda: bench.seconds(batch, [bench.prompt(20)], 1)))
    assert thin.product is chosen
    compare(f"reading {len(bench.prompt(20))} tokens: oneDNN / MKL", fast, usual)


def _with_product(product: Callable[..., torch.Tensor], work: Callable[[], Cost]) -> Cost:
    usual, thin.product = thin.product, product
    try:
        return work()
    finally:
        thin.product = usual


def compare(title: str, first: list[Cost], second: list[Cost]) -> None:
    """Medians of the rounds' ratios, with their range."""
    parts = []
    for name, place in (("time", 0), ("processor time", 1)):
        ratios = [one[place] / other[place] for one, other in zip(first, second, strict=True)]
        parts.append(f"{name} {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{title:60} {'   '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--workspace", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(find_base(Workspace.open(arguments.workspace), "embedded"), Path(scratch))
        bench.seconds(bench.batch(bench.adapters[:1]), [bench.prompt()], 4)  # the first call of everything is slow
        panes(bench, arguments.rounds, arguments.tokens)
        turns(bench, arguments.rounds)
        products(bench, arguments.rounds)


if __name__ == "__main__":
    main()
