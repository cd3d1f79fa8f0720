"""How fast the pages are with a full workspace: `python benchmarks/pages.py` (needs the dev packages and Chromium).

Makes 200 runs of 2,000 logged steps, serves them, and prints: seconds from the start to the first answer and to the first page; for every
page how long it takes until its own content is visible, by a click in the sidebar and by loading the address in a new tab, medians of 20;
memory of the server after all of them; what a live Train page costs; and whether torch is in the server. Beside them stands an empty
Streamlit page: no page can load faster. Measure while nothing else runs; the load average is printed for that.
"""

from __future__ import annotations

import argparse
import os
import shutil
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
from many_runs import grow, make_workspace, run_id, start_live_run
from playwright.sync_api import BrowserContext, Page, sync_playwright

from core.runs import Run
from core.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
# What a reader came for on each page, as a CSS selector; it is among the last things the page draws.
CONTENT = {
    "home": ".stMain .stMarkdownBadge",  # the verdicts of the recent runs
    "data": ".st-key-data_tokens code, .st-key-data_tokens span",
    "recipe": ".st-key-recipe_preflight [data-testid=stMetricValue]",
    "train": ".st-key-train_chart .main-svg .trace",
    "compare": ".st-key-compare_matrix canvas",
    "merge": ".st-key-merge_start button",
    "chat": ".st-key-chat_suggestions button",
}
EMPTY = "import streamlit as st\nst.title('An empty page')\n"
TARGETS = {"start": 3.0, "content": 0.5, "memory": 300.0, "live": 0.25}
PATIENCE_MS = 60_000
SETTLE_MS = 400  # a reader looks before the next click; the page before has then come to rest
UPDATE_SECONDS = 0.5


class Server:
    """A served studio, started as `sweetspot studio` starts it."""

    def __init__(self, home: Path, script: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.perf_counter()
        program = ["streamlit", "run", str(script), f"--server.port={port}"] if script else ["studio.cli", "studio", "--port", str(port)]
        self._started = subprocess.Popen(
            [sys.executable, "-m", *program], cwd=ROOT, env=os.environ | {"SWEETSPOT_HOME": str(home)},
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


# The browser's own clock, looked at before every frame: waiting for an element from outside is half a second coarse.
VISIBLE = """([selector, began]) => {
  const found = document.querySelector(selector);
  return found && found.getClientRects().length && performance.now() - began;
}"""


def seconds_to_load(context: BrowserContext, url: str, content: str) -> float:
    """One load in a new tab until `content` is visible; a page that shows an exception instead ends the measurement."""
    page = context.new_page()
    try:
        page.goto(url, wait_until="commit")
        return _seconds_until(page, content, 0.0)
    finally:
        page.close()


def seconds_by_click(page: Page, name: str) -> float:
    """From a click in the sidebar until the page's content is visible."""
    began = page.evaluate("""name => {
      const link = [...document.querySelectorAll('[data-testid=stSidebarNavLink]')].find(link => new URL(link.href).pathname === name);
      const now = performance.now();
      link.click();
      return now;
    }""", "/" if name == "home" else f"/{name}")
    return _seconds_until(page, CONTENT[name], began)


def _seconds_until(page: Page, content: str, began: float) -> float:
    shown = page.wait_for_function(VISIBLE, arg=[content, began], polling="raf", timeout=PATIENCE_MS).json_value() / 1000
    if page.get_by_test_id("stException").count():
        raise SystemExit(f"{page.url} shows an exception")
    return shown


def measure_pages(context: BrowserContext, server: Server, names: list[str], times: int) -> None:
    """Medians and slowest tenths of every page; the first load of each fills the server's caches and is told apart."""
    print(f"s until the page's content is visible, {times} times each; target {TARGETS['content']} s\n"
          f"{'page':10}{'click':>9}{'90 %':>7}{'load':>9}{'90 %':>7}{'first load':>12}")
    for name in names:
        url = f"{server.url}/?lang=en" if name == "home" else f"{server.url}/{name}?lang=en"
        first = seconds_to_load(context, url, CONTENT[name])
        loads = sorted(seconds_to_load(context, url, CONTENT[name]) for _ in range(times))
        page = context.new_page()
        other = "merge" if name != "merge" else "chat"
        page.goto(f"{server.url}/{other}?lang=en", wait_until="commit")
        _seconds_until(page, CONTENT[other], 0.0)
        clicks = []
        for _ in range(times):
            page.wait_for_timeout(SETTLE_MS)
            clicks.append(seconds_by_click(page, name))
            page.wait_for_timeout(SETTLE_MS)
            seconds_by_click(page, other)
        page.close()
        clicks.sort()
        slow = int(0.9 * (times - 1))
        print(f"{name:10}{statistics.median(clicks):9.2f}{clicks[slow]:7.2f}{statistics.median(loads):9.2f}{loads[slow]:7.2f}{first:12.2f}",
              flush=True)


def measure_empty_page(context: BrowserContext, root: Path, times: int) -> None:
    """What Streamlit and this browser need before any page of ours could show something."""
    with tempfile.TemporaryDirectory(prefix="sweetspot-empty-") as folder:
        script = Path(folder) / "empty.py"
        script.write_text(EMPTY, encoding="utf-8")
        server = Server(root, script)
        try:
            server.seconds_until_healthy()
            loads = [seconds_to_load(context, server.url, "[data-testid=stHeading] h1") for _ in range(times + 1)][1:]
            print(f"an empty Streamlit page: loaded after {statistics.median(loads):.2f} s; memory {resident_mb(server.process):.0f} MB")
        finally:
            server.stop()


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
        shutil.rmtree(run.folder)

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
        _seconds_until(page, CONTENT["train"], 0.0)
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
    options.add_argument("--times", type=int, default=20)
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
            measure_empty_page(context, root, chosen.times)
            measure_pages(context, server, chosen.pages, chosen.times)
            print(f"memory after all pages: {resident_mb(server.process):.0f} MB (target {TARGETS['memory']:.0f} MB)")
            share = live_share(context, server, workspace, chosen.live_seconds)
            print(f"live Train page: {share:.2f} of a core in the server (target {TARGETS['live']})")
            print(f"memory at the end: {resident_mb(server.process):.0f} MB; torch in the server: {'yes' if server.has_torch() else 'no'}; "
                  f"load {os.getloadavg()[0]:.2f}")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
