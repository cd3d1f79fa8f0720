"""How fast the pages are with a full workspace: `python benchmarks/pages.py` (needs the dev packages and Chromium).

Makes 200 runs of 2,000 logged steps, serves them, and prints: seconds from the start to the first answer and to the first page; for every
page the median of 20 loads until its own content is visible; memory of the server after all of them; what a live Train page costs; and
whether torch is in the server. Measure while nothing else runs; the load average is printed for that.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from many_runs import end_live_run, grow, make_workspace, run_id, start_live_run
from playwright.sync_api import BrowserContext, sync_playwright

from core.runs import Run
from core.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
# What a reader came for on each page; it is among the last things the page draws.
CONTENT = {
    "home": "[data-testid=stPageLink] >> text=200 runs",
    "data": ".st-key-data_tokens",
    "recipe": ".st-key-recipe_preflight [data-testid=stMetricValue] >> nth=5",
    "train": ".st-key-train_chart .main-svg >> nth=0",
    "compare": ".st-key-compare_matrix",
    "merge": ".st-key-merge_start",
    "chat": ".st-key-chat_suggestions button >> nth=0",
}
TARGETS = {"start": 3.0, "content": 0.5, "memory": 300.0, "live": 0.25}
PATIENCE_MS = 60_000
UPDATE_SECONDS = 0.5


class Server:
    """A served studio, started as `sweetspot studio` starts it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.perf_counter()
        self._started = subprocess.Popen(
            [sys.executable, "-m", "studio.cli", "studio", "--port", str(port)], cwd=ROOT, env=os.environ | {"SWEETSPOT_HOME": str(home)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.process = psutil.Process(self._started.pid)  # the command line becomes the server: exec, not fork

    def seconds_until_healthy(self) -> float:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while self._started.poll() is None:
            try:
                if opener.open(f"{self.url}/_stcore/health", timeout=5).read() == b"ok":
                    return time.perf_counter() - self.began
            except OSError:
                time.sleep(0.02)
        raise SystemExit("the studio did not start")

    def has_torch(self) -> bool:
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text(encoding="utf-8")

    def stop(self) -> None:
        os.killpg(self._started.pid, signal.SIGTERM)
        self._started.wait()


def seconds_to_load(context: BrowserContext, url: str, content: str) -> float:
    """One load in a new tab until `content` is visible; a page that shows an exception instead ends the measurement."""
    page = context.new_page()
    try:
        began = time.perf_counter()
        page.goto(url, wait_until="commit")
        page.locator(content).first.wait_for(state="visible", timeout=PATIENCE_MS)
        seconds = time.perf_counter() - began
        if page.get_by_test_id("stException").count():
            raise SystemExit(f"{url} shows an exception")
        return seconds
    finally:
        page.close()


def measure_pages(context: BrowserContext, server: Server, names: list[str], loads: int) -> None:
    """Median and slowest tenth of every page; the first load of each fills the server's caches and is told apart."""
    print(f"{'page':10}{'first':>9}{'median':>9}{'90 %':>9}   s until its content is visible, {loads} loads; target {TARGETS['content']} s")
    for name in names:
        url = f"{server.url}/?lang=en" if name == "home" else f"{server.url}/{name}?lang=en"
        first = seconds_to_load(context, url, CONTENT[name])
        later = sorted(seconds_to_load(context, url, CONTENT[name]) for _ in range(loads))
        print(f"{name:10}{first:9.2f}{statistics.median(later):9.2f}{later[int(0.9 * (loads - 1))]:9.2f}", flush=True)


@contextmanager
def growing_run(workspace: Workspace) -> Iterator[Run]:
    """A run that logs an update every half second while the block runs."""
    done, planned, over = 2000, 4000, threading.Event()
    run = start_live_run(workspace, done, planned)

    def go_on() -> None:
        update = done
        while not over.wait(UPDATE_SECONDS):
            update += 1
            grow(run, update, planned)
        end_live_run(run, update, planned)

    worker = threading.Thread(target=go_on)
    worker.start()
    try:
        yield run
    finally:
        over.set()
        worker.join()


def live_share(context: BrowserContext, server: Server, workspace: Workspace, seconds: float) -> float:
    """Share of one core that the server spends on one open Train page whose run goes on."""
    with growing_run(workspace) as run:
        page = context.new_page()
        page.goto(f"{server.url}/train?lang=en&run={run.id}", wait_until="commit")
        page.locator(CONTENT["train"]).first.wait_for(state="visible", timeout=PATIENCE_MS)
        page.wait_for_timeout(5000)
        before, began = server.process.cpu_times(), time.perf_counter()
        page.wait_for_timeout(1000 * seconds)
        after, spent = server.process.cpu_times(), time.perf_counter() - began
        page.close()
    return (after.user + after.system - before.user - before.system) / spent


def resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def main() -> None:
    """Print everything named at the top of this file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workspace", type=Path, help="make it here and keep it; else in a temporary folder")
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--loads", type=int, default=20)
    options.add_argument("--starts", type=int, default=5)
    options.add_argument("--live-seconds", type=float, default=30)
    options.add_argument("--pages", nargs="*", default=[name for name in CONTENT if (ROOT / "pages" / f"{name}.py").exists()])
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweetspot-pages-") as folder:
        root = chosen.workspace or Path(folder)
        workspace = make_workspace(root, chosen.runs, chosen.steps)
        print(f"{chosen.runs} runs of {chosen.steps:,} steps, {run_id(0)} and later; {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
        measure(workspace, root, chosen)


def measure(workspace: Workspace, root: Path, chosen: argparse.Namespace) -> None:
    program = os.environ.get("SWEETSPOT_CHROMIUM") or next(path for path in BROWSERS if Path(path).exists())
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        healthy, shown = [], []
        for number in range(chosen.starts):
            server = Server(root)
            healthy.append(server.seconds_until_healthy())
            context = chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
            seconds_to_load(context, f"{server.url}/?lang=en", "[data-testid=stHeading] h1")
            shown.append(time.perf_counter() - server.began)
            context.close()
            if number < chosen.starts - 1:
                server.stop()
        print(f"start: first answer after {statistics.median(healthy):.2f} s (target {TARGETS['start']} s), "
              f"first page in a fresh browser after {statistics.median(shown):.2f} s; medians of {chosen.starts}")
        print(f"memory after the first page: {resident_mb(server.process):.0f} MB")
        try:
            context = chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
            measure_pages(context, server, chosen.pages, chosen.loads)
            print(f"memory after all pages: {resident_mb(server.process):.0f} MB (target {TARGETS['memory']:.0f} MB)")
            share = live_share(context, server, workspace, chosen.live_seconds)
            print(f"live Train page: {share:.2f} of a core in the server (target {TARGETS['live']})")
            print(f"memory at the end: {resident_mb(server.process):.0f} MB; torch in the server: {'yes' if server.has_torch() else 'no'}; "
                  f"load {os.getloadavg()[0]:.2f}")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
