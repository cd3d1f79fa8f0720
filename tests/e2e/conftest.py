"""A served studio and a browser, for the tests that look at pages as a reader does."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from core.runs import Run
from core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
START_SECONDS = 90.0  # on a busy machine
PATIENCE_MS = 60_000
CHROMIUM_OPTIONS = [
    "--no-sandbox",  # a container's root has none
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]


@pytest.fixture(scope="module")
def studio_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace that the served studio shows; a test may put things into it."""
    return tmp_path_factory.mktemp("studio") / "workspace"


@pytest.fixture(scope="module")
def studio_url(studio_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a studio that serves `studio_home`."""
    server = Served(studio_home, tmp_path_factory.mktemp("elsewhere"))
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


class Served:
    """A studio, started as `sweetspot studio` does, from a folder that is not the checkout; may be killed and started again."""

    def __init__(self, home: Path, elsewhere: Path) -> None:
        self.home, self.elsewhere, self.port = home, elsewhere, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, **served: str) -> None:
        """`served`: what `sweetspot studio` says about it by the environment, such as SWEETSPOT_GATE="class"."""
        log = self.elsewhere / "log.txt"
        environment = os.environ | {"SWEETSPOT_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from studio.launch import launch; launch({self.port}, environment={served})"],
                cwd=self.elsewhere, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True)
        self._wait_until_healthy(log)

    def _wait_until_healthy(self, log: Path) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if opener.open(f"{self.url}/_stcore/health", timeout=2).read() == b"ok":
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the studio did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")

    def kill(self) -> None:
        """As `kill -9` does: no farewell, nothing tidied."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def launch_browser() -> Iterator[Callable[..., Browser]]:
    """Starts a Chromium of its own at each call, with further options."""
    chosen = os.environ.get("SWEETSPOT_CHROMIUM")
    program = next((path for path in ([chosen] if chosen else BROWSERS) if Path(path).exists()), None)
    if program is None:
        pytest.fail("no Chromium here; `make test` installs one, SWEETSPOT_CHROMIUM names one")
    with sync_playwright() as playwright:
        yield lambda *options: playwright.chromium.launch(executable_path=program, args=[*CHROMIUM_OPTIONS, *options])


@pytest.fixture(scope="module")
def browser(launch_browser: Callable[..., Browser]) -> Iterator[Browser]:
    chromium = launch_browser()
    yield chromium
    chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
    yield context.new_page()
    context.close()


class Pages:
    """How tests come to a page."""

    names = tuple(name for name in ("home", "data", "recipe", "train", "compare", "merge", "chat")
                  if (ROOT / "pages" / f"{name}.py").exists())

    def url(self, studio: str, name: str, **query: str) -> str:
        """Address of a page; Home is the root."""
        return f"{studio}/{'' if name == 'home' else name}?{urlencode(query)}"

    def wait_until_drawn(self, page: Page) -> None:
        """Until the script has run and its heading is there; an exception on the page fails the test."""
        expect(page.locator("[data-testid=stApp][data-test-script-state=notRunning]")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_test_id("stHeading").locator("h1").first).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("[data-stale=true]")).to_have_count(0, timeout=PATIENCE_MS)
        expect(page.get_by_test_id("stException")).to_have_count(0)


@pytest.fixture(scope="session")
def serve() -> type[Served]:
    """For tests that start and kill their own studio: `serve(home, elsewhere)`."""
    return Served


@pytest.fixture(scope="session")
def pages() -> Pages:
    return Pages()


@pytest.fixture(scope="module")
def empty_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a studio whose workspace holds nothing yet."""
    server = Served(tmp_path_factory.mktemp("empty") / "workspace", tmp_path_factory.mktemp("elsewhere"))
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="module")
def filled_home(studio_home: Path, tiny_model: Path) -> Run:
    """Put into the served workspace what a term leaves behind: a base model, two judged runs, one that failed, a merged model."""
    made = _runs_written_by_hand()
    workspace = Workspace.open(studio_home)
    base = workspace.models / "tiny"
    shutil.copytree(tiny_model, base)
    made.write_run(workspace, "alex", kind="replay", base=str(base), number=1)
    made.write_run(workspace, "broken", base=str(base), state="failed", judged=False, number=2)
    run = made.write_run(workspace, "alex", base=str(base), number=3)
    made.write_merged(workspace, run, tiny=tiny_model)
    return run


def _runs_written_by_hand() -> ModuleType:
    """`tests/pages/conftest.py`, which knows the files of a run."""
    spec = importlib.util.spec_from_file_location("runs_written_by_hand", ROOT / "tests" / "pages" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
