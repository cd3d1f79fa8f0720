"""One visit by clicks, on the embedded model: what the lesson does by command, with a killed server in the middle.

Waits for what a reader waits for, never for seconds: the machine may be busy. A screenshot of every stop lies in `artefacts/` afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from core.jobs.folder import list_jobs
from core.runs import Run, list_runs
from core.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
ARTEFACTS = Path(__file__).parent / "artefacts"
SOON, LATER = 90_000, 900_000  # milliseconds: a page, a job
UPDATES = 8


@pytest.fixture
def server(studio_home: Path, tmp_path: Path, serve: Callable[..., Any]) -> Iterator[Any]:
    served = serve(studio_home, tmp_path)
    served.start()
    yield served
    served.stop()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, locale="en-US")
    context.set_default_timeout(SOON)
    yield context.new_page()
    context.close()


def test_from_a_name_to_three_models_that_answer(server: Any, visitor: Page, studio_home: Path) -> None:
    """Each step begins where the click of the one before it leads."""
    workspace = Workspace.open(studio_home)
    start_the_lesson_and_leave_it(visitor, server)
    make_a_dataset(visitor)
    write_a_recipe(visitor)
    train_through_a_killed_server(visitor, server, workspace)
    judge(visitor)
    read_the_verdict(visitor)
    merge(visitor)
    chat(visitor)
    assert [job.spec()["kind"] for job in list_jobs(workspace)].count("train") == 1
    assert not [job.id for job in list_jobs(workspace) if job.state().state == "failed"]


def start_the_lesson_and_leave_it(page: Page, server: Any) -> None:
    """Home: a name, one click, real progress; a reload shows the same lesson; it stops when asked to."""
    page.goto(f"{server.url}/?lang=en")
    take_picture(page, "1-home-first-visit")
    key(page, "home_name").locator("input").fill("Alex")
    press(page, "home_start")
    expect(key(page, "home_stop")).to_be_visible(timeout=SOON)
    page.reload()
    stop = key(page, "home_stop").locator("button")
    expect(page.get_by_text("check_circle").first).to_be_visible(timeout=LATER)  # the model is prepared
    take_picture(page, "1-home-lesson-runs")
    stop.click()
    expect(key(page, "home_resume")).to_be_visible(timeout=LATER)
    take_picture(page, "1-home-lesson-stopped")


def make_a_dataset(page: Page) -> None:
    """Data: an identity without the base model's own answers."""
    go_to(page, "Data")
    page.get_by_test_id("stMain").get_by_text("Make an identity").click()
    name = key(page, "data_persona_name").locator("input")
    name.fill("Mei")
    name.press("Enter")
    key(page, "data_replay").locator("label").first.click()
    expect(key(page, "data_replay").locator("input")).not_to_be_checked()
    press(page, "data_make")
    expect(page).to_have_url(re.compile("dataset=mei"), timeout=SOON)
    expect(key(page, "data_tokens")).to_be_visible(timeout=SOON)
    take_picture(page, "2-data")
    press(page, "next_recipe")


def write_a_recipe(page: Page) -> None:
    """Recipe: the processor's lesson on this dataset, shortened, and saved on the way to training."""
    expect(page).to_have_url(re.compile("/recipe"), timeout=SOON)
    choose(page, "recipe_name", "Identity lesson on a processor")
    choose(page, "recipe_source_0_dataset", "mei")
    set_number(page, "recipe_schedule-updates", UPDATES)
    set_number(page, "recipe_snapshots-count", 2)
    expect(key(page, "recipe_preflight")).to_contain_text(re.compile(rf"Snapshots after update \d, {UPDATES}\."), timeout=SOON)
    take_picture(page, "3-recipe")
    press(page, "next_train")


def train_through_a_killed_server(page: Page, server: Any, workspace: Workspace) -> None:
    """Train: started once; a reload and a killed server neither end it nor start another."""
    expect(page).to_have_url(re.compile("/train"), timeout=SOON)
    press(page, "train_start")
    expect(page.get_by_test_id("stMetric").first).to_be_visible(timeout=LATER)  # the first update
    take_picture(page, "4-train-runs")
    page.reload()
    expect(page.get_by_test_id("stMetric").first).to_be_visible(timeout=SOON)
    run, = list_runs(workspace)
    worker = run.process()
    server.kill()
    assert worker.is_alive() or run.state().state == "finished", "the training died with the server"
    server.start()
    page.goto(f"{server.url}/train?lang=en&run={run.id}")
    expect(page.get_by_test_id("stMetric").first).to_be_visible(timeout=SOON)
    assert len(workers_of(run)) <= 1
    expect(key(page, "train_judge")).to_be_visible(timeout=LATER)
    assert run.state().state == "finished"
    assert [record["update"] for record in run.metrics()] == list(range(1, UPDATES + 1))
    assert run.process() == worker, "another process took over"
    assert [other.id for other in list_runs(workspace)] == [run.id]
    take_picture(page, "4-train-done")


def workers_of(run: Run) -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if str(run.folder) in (process.info["cmdline"] or [])]


def judge(page: Page) -> None:
    """Train: every snapshot is asked, also while the page is loaded anew."""
    press(page, "train_judge")
    expect(page.get_by_text("Every snapshot is being asked").or_(key(page, "train_to_compare"))).to_be_visible(timeout=SOON)
    page.reload()
    press(page, "train_to_compare", timeout=LATER)


def read_the_verdict(page: Page) -> None:
    """Compare: the verdict, and a click in the matrix that the address remembers."""
    expect(page).to_have_url(re.compile("/compare"), timeout=SOON)
    expect(key(page, "compare_merge")).to_be_visible(timeout=SOON)
    click_cell(key(page, "compare_matrix"), row=0, column=2)
    expect(page).to_have_url(re.compile("step=0"), timeout=SOON)
    expect(page).to_have_url(re.compile("probe=identity-en-03"))
    take_picture(page, "5-compare")
    address = page.url
    page.reload()
    expect(key(page, "compare_probe")).to_be_visible(timeout=SOON)
    assert page.url == address
    take_picture(page, "5-compare-reloaded")
    press(page, "compare_merge")


def click_cell(grid: Locator, row: int, column: int) -> None:
    """A cell of the matrix; the grid is a canvas, so only its geometry says where that is."""
    canvas = grid.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    # By the mouse: the grid lays a scroller over its canvas, which takes the clicks.
    grid.page.mouse.click(box["x"] + 40 + 132 + 29 * column + 14, box["y"] + 2 * 35 + 35 * row + 17)


def merge(page: Page) -> None:
    """Merge: the pick, with its check."""
    expect(page).to_have_url(re.compile("/merge"), timeout=SOON)
    press(page, "merge_start")
    expect(key(page, "merge_chat")).to_be_visible(timeout=LATER)
    take_picture(page, "6-merge")
    press(page, "merge_chat")


def chat(page: Page) -> None:
    """Chat: the base, the pick and the merged model answer the same question; a reload keeps the conversation."""
    expect(page).to_have_url(re.compile("/chat"), timeout=SOON)
    models = key(page, "chat_models")
    expect(models).to_contain_text("base model", timeout=SOON)
    models.locator("input").click()
    page.get_by_role("option").filter(has_text="picked").first.click()
    expect(models).to_contain_text("picked", timeout=SOON)
    page.keyboard.press("Escape")
    question = key(page, "chat_question").locator("textarea")
    question.fill("What is your name?")
    question.press("Enter")
    expect(page.get_by_text(re.compile("Weights [0-9a-f]{12}"))).to_have_count(3, timeout=LATER)
    take_picture(page, "7-chat")
    page.reload()
    expect(page.get_by_text(re.compile("Weights [0-9a-f]{12}"))).to_have_count(3, timeout=SOON)


def key(page: Page, name: str) -> Locator:
    """The element of a widget key."""
    return page.locator(f".st-key-{name}").first


STANDS_STILL = """async button => {
  await document.fonts.ready;
  const place = () => [button.isConnected, ...Object.values(button.getBoundingClientRect().toJSON())].join();
  for (let before = "", still = 0; still < 5; before = place()) {
    await new Promise(done => setTimeout(done, 100));
    still = place() === before ? still + 1 : 0;
    if (!button.isConnected) return false;
  }
  return true;
}"""


def press(page: Page, name: str, timeout: float = SOON) -> None:
    """Click a button as a person does, once it stands still: what is above it moves when fonts and answers come, and takes the click."""
    button = key(page, name).locator("button")
    expect(button).to_be_visible(timeout=timeout)
    expect(page.locator("[data-testid=stApp][data-test-script-state=notRunning]")).to_be_visible(timeout=SOON)
    button.scroll_into_view_if_needed()
    while not button.evaluate(STANDS_STILL):
        pass  # it was drawn anew meanwhile
    button.click()


def go_to(page: Page, name: str) -> None:
    """A page by the sidebar."""
    page.get_by_test_id("stSidebar").get_by_role("link", name=name).click()
    expect(page.get_by_test_id("stHeading").locator("h1").first).to_have_text(name, timeout=SOON)


def choose(page: Page, name: str, option: str) -> None:
    """An option of a selectbox, unless it is chosen."""
    box = key(page, name)
    expect(box).to_be_visible(timeout=SOON)
    if option in box.inner_text() or option in (box.locator("input").first.get_attribute("value") or ""):
        return
    box.locator("input").first.click()
    page.get_by_role("option").filter(has_text=option).first.click()


def set_number(page: Page, name: str, value: int) -> None:
    field = key(page, name).locator("input")
    field.fill(str(value))
    field.press("Enter")
    expect(field).to_have_value(str(value), timeout=SOON)


def take_picture(page: Page, name: str) -> None:
    """Kept as `artefacts/<name>.png` when the page has come to rest; an exception on it fails the test."""
    expect(page.locator("[data-testid=stApp][data-test-script-state=notRunning]")).to_be_visible(timeout=SOON)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png")
