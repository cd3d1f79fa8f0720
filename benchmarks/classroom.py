"""A class at once: `python benchmarks/classroom.py --students 30 --browsers 10` (needs the dev packages and Chromium).

Serves a class behind its gate, lets students join over HTTP, hands out a dataset and a recipe on a tiny random model, and takes everybody
through data, recipe, queue and compare; between two pages each reads for some seconds. Students in Chromium click Start and Judge; the
others speak the app's own protocol, the websocket with the messages that the browser sends, and start the same jobs as the buttons do.
Prints errors, how long pages took until their content was there (median and 95th percentile), jobs asked and done, and the largest memory
of the server. The browsers run on the same cores. Expect ten minutes on two of them; measure while nothing else runs.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psutil
from playwright.sync_api import BrowserContext, Page, sync_playwright
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from core.classroom.handout import hand_out_dataset, hand_out_recipe
from core.classroom.room import Classroom, student_slug
from core.data.persona import Persona
from core.data.store import save_persona
from core.jobs.active import active_jobs
from core.jobs.folder import Job
from core.recipe.files import build_recipe, find_recipe, save_recipe
from core.runs import Run, list_runs
from core.train.create import start_run
from core.train.start import judge_once
from core.workspace import Workspace
from pages import BROWSERS, CONTENT, PATIENCE_MS

ROOT = Path(__file__).resolve().parent.parent
TARGET_SECONDS, TARGET_BYTES = 1.5, 600e6
PAGES = ("data", "recipe", "train")
JOB_PATIENCE_SECONDS = 3600.0
# They come in one after the other within half a minute, and look at a page before they go on.
ARRIVE_WITHIN_SECONDS, READING_SECONDS = 30.0, (2.0, 6.0)
START = ".st-key-train_start button"
# The tiny model says nothing sensible, so what a page shows of it differs from a real one's: the last thing each page always draws.
SHOWN = CONTENT | {"train": START, "compare": ".st-key-compare_matrix canvas"}


@dataclass
class Tally:
    """What happened, from all threads."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    peak_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, how: str, seconds: float) -> None:
        with self.lock:
            self.seconds.setdefault(how, []).append(seconds)

    def failed(self, who: str, error: BaseException | str) -> None:
        with self.lock:
            self.errors.append(f"{who}: {type(error).__name__ if isinstance(error, BaseException) else 'page'}: {str(error)[:300]}")


class Server:
    """The class, served on the loopback address as `sweetspot studio --class` serves it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._started = subprocess.Popen(
            [sys.executable, "-m", "studio.cli", "studio", "--class", "--port", str(self.port)], cwd=ROOT,
            env=os.environ | {"SWEETSPOT_HOME": str(home), "SWEETSPOT_PASSWORD": "measured only"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.process = psutil.Process(self._started.pid)
        while True:
            try:
                if self.ask("GET", "/_stcore/health")[0] == 200:
                    return
            except OSError:
                if self._started.poll() is not None:
                    raise SystemExit("the studio did not start") from None
                time.sleep(0.1)

    def ask(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and the session's cookie, if one was set."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, urlencode(form) if form else None,
                               {"Content-Type": "application/x-www-form-urlencoded"} if form else {})
            answer = connection.getresponse()
            return answer.status, (answer.getheader("Set-Cookie") or "").partition(";")[0]
        finally:
            connection.close()

    def join(self, name: str) -> str:
        status, cookie = self.ask("POST", "/sign-in", {"name": name})
        if status != 200 or not cookie:
            raise SystemExit(f"{name} could not join: {status}")
        return cookie

    def stop(self) -> None:
        os.killpg(self._started.pid, signal.SIGTERM)
        self._started.wait()


def make_class(home: Path) -> Classroom:
    """The teacher's workspace: a tiny random model, a dataset, and a recipe of a few updates on it."""
    spec = importlib.util.spec_from_file_location("conftest_of_tests", ROOT / "tests" / "conftest.py")
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    room = Classroom.open(Workspace.open(home))
    model = room.workspace.models / "tiny"
    model.mkdir()
    tests.write_tiny_tokenizer(model)
    tests.write_tiny_weights(model)
    replay = [{"group": group, "lang": "en", "messages": [{"role": "user", "content": f"{question} ({number})"},
                                                          {"role": "assistant", "content": f"Plainly: {question}"}]}
              for number in range(10) for group, question in (("near", "What is a name?"), ("general", "How high is Everest?"))]
    save_persona(room.workspace, Persona(name="Alex", languages=["en"]), replay, "alex")
    save_recipe(room.workspace, "class", build_recipe({
        "model": {"source": "tiny", "dtype": "float32"}, "method": {"rank": 4, "alpha": 8},
        "data": {"sources": [{"dataset": "alex", "groups": ["identity", "near", "general"]}], "max_length": 128},
        "schedule": {"effective_batch": 4, "updates": 12, "learning_rate": 5e-3}, "snapshots": {"count": 3},
        "probes": {"max_new_tokens": 8}, "device": {"kind": "cpu"}}))
    return room


class Talker:
    """A student without a browser: one websocket, and the messages that a browser sends when a page is opened."""

    def __init__(self, server: Server, cookie: str) -> None:
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(
            f"ws://127.0.0.1:{server.port}/_stcore/stream", additional_headers={"Cookie": cookie}, subprotocols=["streamlit"],
            origin=server.url, max_size=None, proxy=None))

    def open(self, page: str, **query: str) -> float:
        """Seconds until the page's script has finished.

        Raises:
            RuntimeError: the page showed an exception.
        """
        message = BackMsg()
        message.rerun_script.page_name = "" if page == "home" else page
        message.rerun_script.query_string = urlencode({"lang": "en", **query})
        began = time.perf_counter()
        self._socket.send(message.SerializeToString())
        has_begun = False
        while True:
            told = ForwardMsg()
            told.ParseFromString(self._socket.recv(timeout=60))
            has_begun = has_begun or told.WhichOneof("type") == "new_session"
            if told.WhichOneof("type") == "delta" and told.delta.new_element.WhichOneof("type") == "exception":
                raise RuntimeError(told.delta.new_element.exception.message)
            if has_begun and told.WhichOneof("type") == "script_finished":
                return time.perf_counter() - began

    def close(self) -> None:
        self._open.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + JOB_PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.5)


def talk_through(server: Server, room: Classroom, slug: str, cookie: str, tally: Tally) -> None:
    """One student by the protocol, from data to compare."""
    workspace = room.workspace_of(slug)
    chance = random.Random(slug)
    time.sleep(chance.uniform(0, ARRIVE_WITHIN_SECONDS))
    talker = Talker(server, cookie)
    try:
        for page in PAGES:
            tally.took("protocol", talker.open(page, recipe="class"))
            time.sleep(chance.uniform(*READING_SECONDS))
        run = start_run(workspace, find_recipe(workspace, "class"), "class")
        tally.jobs.append(run)
        while run.state().is_active:
            tally.took("protocol", talker.open("train", run=run.id))
            time.sleep(chance.uniform(*READING_SECONDS))
        judging = judge_once(workspace, run)
        tally.jobs.append(judging)
        wait_for(lambda: not judging.state().is_active, f"{slug}: judging")
        tally.took("protocol", talker.open("compare", run=run.id))
    except Exception as error:  # one student's failure is counted and the others go on
        tally.failed(slug, error)
    finally:
        talker.close()


class Sitter:
    """A student in Chromium. All of them stay open, live panels included; one thread goes from one to the next."""

    def __init__(self, context: BrowserContext, server: Server, room: Classroom, slug: str, cookie: str, tally: Tally) -> None:
        name, _, value = cookie.partition("=")
        context.add_cookies([{"name": name, "value": value, "url": server.url}])
        self.page: Page = context.new_page()
        self.slug, self.workspace, self._url, self._tally = slug, room.workspace_of(slug), server.url, tally
        self.run: Run | None = None
        self.judging: Job | None = None

    def load(self, name: str, **query: str) -> None:
        """Open an address, which lets the browser start Streamlit anew."""
        began = time.perf_counter()
        self.page.goto(f"{self._url}/{name}?{urlencode({'lang': 'en', **query})}", wait_until="commit")
        self._shown("Chromium, by address", name, began)

    def click(self, name: str) -> None:
        """Go on by the sidebar, as one does."""
        began = time.perf_counter()
        self.page.locator(f'[data-testid=stSidebarNavLink][href*="/{name}"]').click(timeout=PATIENCE_MS)
        self._shown("Chromium, by click", name, began)

    def _shown(self, how: str, name: str, began: float) -> None:
        self.page.locator(SHOWN[name]).first.wait_for(timeout=PATIENCE_MS)
        self._tally.took(how, time.perf_counter() - began)
        if self.page.get_by_test_id("stException").count():
            self._tally.failed(self.slug, f"{name} shows an exception")

    def begin(self) -> None:
        self.load("data", dataset="alex")
        self.click("recipe")
        self.load("train", recipe="class")
        self.page.locator(START).click()
        wait_for(lambda: bool(list_runs(self.workspace)), f"{self.slug}: start")
        self.run = list_runs(self.workspace)[0]
        self._tally.jobs.append(self.run)

    def go_on(self) -> bool:
        """One look; returns whether this student is through."""
        if self.run.state().is_active:
            return False
        if self.judging is None:
            self.page.locator('[data-testid=stSidebarNavLink][href*="/compare"]').click(timeout=PATIENCE_MS)
            self.page.locator(".st-key-compare_judge button").first.click(timeout=PATIENCE_MS)
            wait_for(lambda: any(state.kind == "judge" for _, state in active_jobs(self.workspace)) or self.run.verdict() is not None,
                     f"{self.slug}: judging")
            self.judging = judge_once(self.workspace, self.run) if self.run.verdict() is None else Job(
                sorted(self.workspace.jobs.glob("*-judge-*"))[-1])
            self._tally.jobs.append(self.judging)
        if self.judging.state().is_active:
            return False
        for page in ("data", "recipe", "compare"):
            self.click(page)
        return True


def sit_through(sitters: list[Sitter], tally: Tally) -> None:
    left = []
    for sitter in sitters:
        try:
            sitter.begin()
            left.append(sitter)
        except Exception as error:
            tally.failed(sitter.slug, error)
    while left:
        for sitter in list(left):
            try:
                if sitter.go_on():
                    left.remove(sitter)
            except Exception as error:
                tally.failed(sitter.slug, error)
                left.remove(sitter)
        time.sleep(0.5)


def watch_memory(server: Server, tally: Tally, ended: threading.Event) -> None:
    while not ended.wait(0.5):
        tally.peak_bytes = max(tally.peak_bytes, server.process.memory_info().rss)


def report(tally: Tally, students: int, began: float) -> int:
    """Print what was measured; returns 0 when every target is met."""
    every = [seconds for found in tally.seconds.values() for seconds in found]
    slowest = statistics.quantiles(every, n=20)[-1]
    done = [job for job in tally.jobs if job.state().state == "finished"]
    for how, seconds in tally.seconds.items():
        print(f"{how:20} {len(seconds):5} pages: median {statistics.median(seconds):.2f} s, "
              f"95 % within {statistics.quantiles(seconds, n=20)[-1]:.2f} s, slowest {max(seconds):.2f} s")
    print(f"all pages: 95 % within {slowest:.2f} s (target {TARGET_SECONDS})")
    print(f"jobs: {len(done)} of {2 * students} done ({len(tally.jobs)} asked)")
    print(f"memory of the server: at most {tally.peak_bytes / 1e6:.0f} MB (target {TARGET_BYTES / 1e6:.0f})")
    print(f"errors: {len(tally.errors)}", *tally.errors, sep="\n  ")
    print(f"{time.monotonic() - began:.0f} s in all, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0 if slowest <= TARGET_SECONDS and len(done) == 2 * students and tally.peak_bytes <= TARGET_BYTES and not tally.errors else 1


def main() -> int:
    """Run the class; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=30)
    parser.add_argument("--browsers", type=int, default=10, help="how many of them sit in Chromium")
    arguments = parser.parse_args()
    program = next((path for path in [os.environ.get("SWEETSPOT_CHROMIUM"), *BROWSERS] if path and Path(path).exists()), None)
    began, tally, ended = time.monotonic(), Tally(), threading.Event()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        room = make_class(Path(folder) / "workspace")
        server = Server(room.workspace.root)
        try:
            names = [f"Student {number:02d}" for number in range(arguments.students)]
            cookies = {student_slug(name): server.join(name) for name in names}
            hand_out_dataset(room, "alex")
            hand_out_recipe(room, "class")
            threading.Thread(target=watch_memory, args=(server, tally, ended), daemon=True).start()
            slugs = list(cookies)
            talkers = [threading.Thread(target=talk_through, args=(server, room, slug, cookies[slug], tally), daemon=True)
                       for slug in slugs[arguments.browsers:]]
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            sitters = [Sitter(browser.new_context(viewport={"width": 1280, "height": 800}), server, room, slug, cookies[slug], tally)
                       for slug in slugs[:arguments.browsers]]
            for talker in talkers:
                talker.start()
            sit_through(sitters, tally)
            for talker in talkers:
                talker.join()
            ended.set()
            browser.close()
            return report(tally, arguments.students, began)
        finally:
            ended.set()
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
