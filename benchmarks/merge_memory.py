"""Peak memory of a merge beside the size of the model: `python benchmarks/merge_memory.py --gigabytes 2`.

Writes a random Llama in bfloat16 as several files and a random adapter over all of its linear layers, then measures, each in a process
of its own, the peak resident memory of merging (tensor by tensor), of merging as PEFT does it (the whole model in memory), and of the
check. What Python with torch, transformers and PEFT takes before any model is measured too and shown beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MEASURE = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import peft, torch, transformers
from core.chat.stacked import Adapter
from core.merge.verify import verify_merge
from core.merge.weights import merge_weights
base, adapter, target = map(Path, {folders!r})
began = time.perf_counter()
what = {what!r}
if what == "ours":
    target.mkdir()
    merge_weights(base, Adapter("a", adapter), target, "auto", lambda done, total: None)
elif what == "peft":
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(target)
elif what == "check":
    probes = [{{"id": "a", "messages": [{{"role": "user", "content": "Who are you?"}}]}}]
    verify_merge(base, Adapter("a", adapter), target, probes, 0, "bfloat16", None, 2, "cpu")
print(json.dumps({{"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": time.perf_counter() - began}}))
"""


def measure(what: str, base: Path, adapter: Path, target: Path) -> dict[str, float]:
    """Peak resident memory in bytes and seconds of one way, in a fresh process."""
    program = _MEASURE.format(root=str(ROOT), folders=[str(base), str(adapter), str(target)], what=what)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def write_model(folder: Path, size_bytes: float) -> int:
    """A Llama of about this size in files of a quarter of it; returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.random_model import write_tokenizer

    hidden, inner, vocabulary = 2048, 8192, 32000
    of_a_layer = 2 * (2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * inner)
    layers = max(1, round((size_bytes - 4 * hidden * vocabulary) / of_a_layer))
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=8,
            vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, dtype=torch.bfloat16)).to(torch.bfloat16)
    from core.models.shards import Entry, divide, write_files

    entries = [Entry(name, value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()]
    total = sum(entry.size_bytes for entry in entries)
    shapes = {entry.name: entry.shape for entry in entries}
    folder.mkdir(parents=True)
    write_files(folder, divide(entries, total / 4 + 1), lambda name: torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02,
                lambda done, count: None)
    model.config.save_pretrained(folder)
    write_tokenizer(folder)
    return total


def write_adapter(folder: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from core.models.shards import stored_tensors

    tensors = {}
    for name, stored in stored_tensors(base).items():
        if "_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            out, wide = stored.entry.shape
            tensors |= {f"{module}.lora_A.weight": torch.randn(16, wide) * 0.01, f"{module}.lora_B.weight": torch.randn(out, 16) * 0.01}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the model's weights")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = Path(folder) / "base", Path(folder) / "adapter"
        size = write_model(base, options.gigabytes * 1e9)
        write_adapter(adapter, base)
        found = {"nothing": measure("nothing", base, adapter, Path(folder) / "none"),
                 "merge": measure("ours", base, adapter, Path(folder) / "ours"),
                 "check": measure("check", base, adapter, Path(folder) / "ours"),
                 "merge_and_unload": measure("peft", base, adapter, Path(folder) / "peft")}
    floor = found["nothing"]["peak"]
    rows = {name: {**result, "above_nothing": result["peak"] - floor, "of_the_model": (result["peak"] - floor) / size}
            for name, result in found.items()}
    if options.json:
        print(json.dumps({"model_bytes": size, "rows": rows}, indent=1))
        return
    print(f"model: {size / 1e9:.2f} GB in bfloat16, 4 files")
    for name, row in rows.items():
        print(f"{name:18s} peak {row['peak'] / 1e9:5.2f} GB, without Python and torch {row['above_nothing'] / 1e9:5.2f} GB = "
              f"{row['of_the_model']:.2f} of the model, {row['seconds']:.0f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
