"""How much waiting OpenMP threads cost when the machine is busy: `python benchmarks/threads.py`.

Times a chain of small matrix products (the shape of the embedded model's feed-forward layer) in a fresh process, with threads that
spin and with threads that sleep while they wait; once alone and once beside a second process that uses both cores. Prints the ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

PROGRAM = """
import time, torch
torch.set_num_threads(2)
x, weights = torch.randn(60, 576), [torch.randn(1536, 576) for _ in range(200)]
for _ in range(2):
    began = time.monotonic()
    for weight in weights:
        torch.nn.functional.silu(torch.nn.functional.linear(x, weight))
print(time.monotonic() - began)
"""
LOAD = "import torch; torch.set_num_threads(2); a = torch.randn(600, 600)\nwhile True: a = torch.tanh(a @ a)"
ROUNDS = 3


def seconds(policy: str) -> float:
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def compare(title: str) -> None:
    pairs = [(seconds("ACTIVE"), seconds("PASSIVE")) for _ in range(ROUNDS)]
    spin, sleep = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{title:12} spinning {spin:6.2f} s   sleeping {sleep:6.2f} s   spinning / sleeping {spin / sleep:5.2f}")


def main() -> None:
    """Print both comparisons."""
    compare("alone")
    load = subprocess.Popen([sys.executable, "-c", LOAD], env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    try:
        compare("beside a load")
    finally:
        load.kill()
        load.wait()


if __name__ == "__main__":
    main()
