"""Faults at the browser's end: twenty people click in the same moment, and a browser that is killed while a training runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Error, Page, expect

from core.data.library import list_datasets
from core.recipe.files import save_recipe
from core.runs import Run, list_runs
from core.workspace import Workspace, read_json
from tests.core.conftest import save_tiny_dataset, tiny_recipe

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
PEOPLE, CONTEXTS, RECIPES, UPDATES = 20, 2, 4, 4000
PATIENCE_MS = 60_000
CLICK_AT = """at => setTimeout(() => document.querySelector('.st-key-train_start button').click(), at - Date.now())"""


def test_twenty_click_at_once_and_a_killed_browser_ends_no_training(
        serve: Callable[..., Any], tmp_path: Path, tiny_model: Path, launch_browser: Callable[..., Browser], pages: Any,
        record_property: Any) -> None:
    """Twenty start four recipes, five of them each: four runs, none twice. Then their browser dies, and the first run does not notice."""
    workspace, server = Workspace.open(tmp_path / "workspace"), serve(tmp_path / "workspace", tmp_path)
    server.start()
    shutil.copytree(tiny_model, workspace.models / "tiny")
    save_tiny_dataset(workspace)
    for number in range(RECIPES):
        save_recipe(workspace, f"class-{number}", tiny_recipe("tiny", schedule__updates=UPDATES, schedule__seed=number))
    children = processes()
    # Pages of one context then share a process, which reads the studio's scripts once.
    browser = launch_browser(f"--renderer-process-limit={CONTEXTS}")
    own = {process for process in processes() - children if "chrom" in process.name()}
    assert own
    try:
        seen = click_together(browser, server.url, pages)
        runs = list_runs(workspace)
        assert sorted(run.recipe().schedule.seed for run in runs) == list(range(RECIPES)), "each recipe was started once"
        assert seen == {run.id: PEOPLE // RECIPES for run in runs}, "everybody is shown the run of the recipe they started"
        assert all(len(workers_of(run)) == 1 and read_json(run.folder / "spec.json")["kind"] == "train" for run in runs)
        assert not [path for path in workspace.root.rglob(".*") if path.suffix in (".tmp", ".partial")]
        assert len(list_datasets(workspace)) == 1
        assert "Traceback" not in (tmp_path / "log.txt").read_text(encoding="utf-8"), "no session met an exception"
        record_property("injections", PEOPLE + 1)

        first = wait_for_updates(runs, 3)
        worker, before = first.process(), len(first.metrics())
        for process in own:  # the browser's main process dies first, then its pages and its network
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        again = launch_browser()
        page = again.new_page(locale="en-US")
        page.goto(f"{server.url}/train?lang=en&run={first.id}")
        expect(page.get_by_test_id("stMetric").first).to_be_visible(timeout=PATIENCE_MS)
        pages.wait_until_drawn(page)
        assert first.id in page.url and first.process() == worker and worker.is_alive() and len(first.metrics()) > before
        record_property("figure", f"{len(runs)} runs of {PEOPLE} clicks; the run is on the screen again "
                                  f"{time.monotonic() - began:.1f} s after the browser was killed")
        with contextlib.suppress(Error):
            again.close()
    finally:
        server.stop()
        for run in list_runs(workspace):
            process = run.process()
            if process is not None and process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)


def click_together(browser: Browser, url: str, pages: Any) -> dict[str, int]:
    """Load the Train page for everybody, let all click in the same moment; returns run -> how many are shown it."""
    crowd: list[Page] = []
    contexts = [browser.new_context(locale="en-US", viewport={"width": 1000, "height": 700}) for _ in range(CONTEXTS)]
    for number in range(PEOPLE):
        page = contexts[number % CONTEXTS].new_page()
        page.goto(f"{url}/train?lang=en&recipe=class-{number % RECIPES}", wait_until="commit")
        crowd.append(page)
    for page in crowd:
        expect(page.locator(".st-key-train_start button")).to_be_visible(timeout=PATIENCE_MS)
    at = time.time() * 1000 + 1500
    for page in crowd:
        page.evaluate(CLICK_AT, at)
    seen: dict[str, int] = {}
    for page in crowd:
        page.wait_for_url("**run=**", wait_until="commit", timeout=PATIENCE_MS)
        run = page.url.partition("run=")[2].partition("&")[0]
        seen[run] = seen.get(run, 0) + 1
        expect(page.get_by_test_id("stException")).to_have_count(0)
        if page is not crowd[-1]:  # a page that follows a run takes a tenth of a core: that is another test
            page.close()
    pages.wait_until_drawn(crowd[-1])
    return seen


def wait_for_updates(runs: list[Run], updates: int) -> Run:
    """The run that has the device, once it has trained so far."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for run in runs:
            if len(run.metrics()) >= updates:
                return run
        time.sleep(0.1)
    raise AssertionError([run.log_tail(3) for run in runs])


def processes() -> set[psutil.Process]:
    """Everything that this test's process has started."""
    return set(psutil.Process().children(recursive=True))


def workers_of(run: Run) -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if str(run.folder) in (process.info["cmdline"] or [])]
