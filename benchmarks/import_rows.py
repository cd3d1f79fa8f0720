"""How long importing takes and how much memory it needs: a million short rows, and half a gigabyte of long ones.

    python benchmarks/import_rows.py [FOLDER]

Writes the files to FOLDER (a temporary one by default, about 1.5 GB), imports each through the real job in a process of its own, and
prints one line of figures per file: rows, megabytes, seconds, rows per second, and the most memory the process held.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.data.import_job import start_import
from core.jobs.folder import JobState
from core.jobs.launch import memory_bytes, wait_for_job
from core.workspace import Workspace

SHORT_ROWS, LONG_BYTES = 1_000_000, 500_000_000


def short_rows() -> Iterator[str]:
    for number in range(SHORT_ROWS):
        yield json.dumps({"instruction": f"What is {number} plus {number % 97}?", "input": "", "output": f"It is {number + number % 97}."})


def long_rows() -> Iterator[str]:
    answer, size, number = "A sentence that goes on about nothing in particular. " * 60, 0, 0
    while size < LONG_BYTES:
        number += 1
        line = json.dumps({"messages": [{"role": "user", "content": f"Tell me story {number}, 第{number}个。"},
                                        {"role": "assistant", "content": answer + str(number)}]}, ensure_ascii=False)
        size += len(line) + 5
        yield line


def measure(workspace: Workspace, path: Path, lines: Callable[[], Iterator[str]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in lines())
    peak = 0

    def watch(state: JobState) -> None:
        nonlocal peak
        peak = max(peak, memory_bytes(state))

    began = time.monotonic()
    state = wait_for_job(start_import(workspace, str(path), path.stem), watch)
    seconds, result = time.monotonic() - began, state.result or {}
    rows = result["imported"] + result["repaired"]
    print(f"{path.name}: {rows:,} rows of {result['read']:,} records, {path.stat().st_size / 1e6:.0f} MB, {seconds:.0f} s, "
          f"{rows / seconds:,.0f} rows/s, {peak / 1e6:.0f} MB of memory at most", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        place = Workspace.open(folder / "workspace")
        measure(place, folder / "short.jsonl", short_rows)
        measure(place, folder / "long.jsonl", long_rows)
