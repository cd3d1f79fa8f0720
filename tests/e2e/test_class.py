"""A class in Chromium: nothing without signing in, two students apart from each other, the teacher sees both."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from core.access.password import set_password
from core.classroom.room import Classroom
from core.workspace import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"
PATIENCE_MS = 60_000


def _module(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory, serve) -> Iterator[tuple[str, Classroom]]:
    """A class that is served on the loopback address with a password, as `sweetspot studio --class` serves it."""
    home = tmp_path_factory.mktemp("school") / "workspace"
    workspace = Workspace.open(home)
    set_password(workspace, PASSWORD)
    room = Classroom.open(workspace)
    server = serve(home, tmp_path_factory.mktemp("elsewhere"))
    try:
        server.start(SWEETSPOT_GATE="class", SWEETSPOT_PORT=str(server.port))
        yield server.url, room
    finally:
        server.stop()


@pytest.fixture
def contexts(browser: Browser) -> Iterator[list[BrowserContext]]:
    """Three people with a browser each."""
    found = [browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US") for _ in range(3)]
    yield found
    for context in found:
        context.close()


def join(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Go in").first.click()
    expect(page.get_by_text(f"Welcome, {name}")).to_be_visible()
    page.get_by_role("link", name="Go on").click()


def status(url: str, cookie: str = "", **headers: str) -> int:
    """What the server answers to a GET, an opened websocket (101) included."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path, headers=headers | ({"Cookie": cookie} if cookie else {}))
        return connection.getresponse().status
    finally:
        connection.close()


def test_two_students_and_a_teacher(school: tuple[str, Classroom], contexts: list[BrowserContext], pages) -> None:
    url, room = school
    ana, ben, teacher = (context.new_page() for context in contexts)
    ana.goto(f"{url}/compare?lang=en")
    expect(ana).to_have_url(re.compile(r"/sign-in\?next="))
    assert ana.locator("[data-testid=stApp]").count() == 0
    join(ana, f"{url}/data?lang=en", "Ana")
    join(ben, f"{url}/data?lang=en", "Ben")
    for page in (ana, ben):
        pages.wait_until_drawn(page)
    by_hand = _module("runs_written_by_hand", ROOT / "tests" / "pages" / "conftest.py")
    by_hand.write_run(room.workspace_of("ana"), "ana-secret")
    run = next((room.folder / "ana" / "runs").iterdir()).name
    ana.goto(f"{url}/compare?lang=en&run={run}")
    expect(ana.locator(".st-key-compare_matrix canvas").first).to_be_visible(timeout=PATIENCE_MS)
    ben.goto(f"{url}/compare?lang=en&run={run}")
    pages.wait_until_drawn(ben)
    assert ben.locator(".st-key-compare_matrix").count() == 0 and not list((room.folder / "ben" / "runs").iterdir())
    expect(ben.locator(".st-key-compare_to_lesson")).to_be_visible()  # for Ben there is no run at all
    ben.goto(f"{url}/wall?lang=en")
    expect(ben.get_by_test_id("stDataFrame")).to_be_visible(timeout=PATIENCE_MS)
    assert ben.get_by_role("button", name="Pause the queue").count() == 0
    ben.locator(".st-key-wall_view").get_by_text("Shared").click()
    expect(ben.get_by_text("Nobody shows anything yet")).to_be_visible(timeout=PATIENCE_MS)
    ana.locator(f".st-key-wall_share_{run} label").first.click()
    expect(ana.locator(f".st-key-wall_share_{run} input")).to_be_checked()
    pages.wait_until_drawn(ana)
    ben.reload()
    ben.locator(".st-key-wall_view").get_by_text("Shared").click()
    expect(ben.locator(".st-key-compare_matrix canvas").first).to_be_visible(timeout=PATIENCE_MS)  # Ana's, by her word

    teacher.goto(f"{url}/wall?lang=en")
    teacher.get_by_text("I am the teacher").click()
    teacher.get_by_label("Password").fill(PASSWORD)
    teacher.get_by_role("button", name="Go in").last.click()
    pages.wait_until_drawn(teacher)
    card = teacher.locator(".st-key-wall_card_ana")
    expect(card.get_by_text("Ana")).to_be_visible(timeout=PATIENCE_MS)
    card.get_by_role("button", name="Matrix").click()
    expect(teacher.locator(".st-key-compare_matrix canvas").first).to_be_visible(timeout=PATIENCE_MS)
    folder = os.environ.get("SWEETSPOT_SCREENSHOTS")
    if folder:
        teacher.screenshot(path=f"{folder}/wall.png", full_page=True)
    teacher.keyboard.press("Escape")
    for name, key in (("Leaderboard", "csv"), ("Queue", "pause"), ("Hand out", "hand_out"), ("People", "keep")):
        teacher.locator(".st-key-wall_view").get_by_text(name).click()
        expect(teacher.locator(f".st-key-wall_{key}")).to_be_visible(timeout=PATIENCE_MS)
        assert teacher.get_by_test_id("stException").count() == 0, name

    # What a page loaded for its owner is nothing for somebody without a session, nor is the socket.
    cookie = "; ".join(f"{found['name']}={found['value']}" for found in contexts[0].cookies())
    for path in ("/_stcore/host-config", "/favicon.png"):
        assert (status(url + path, cookie), status(url + path)) == (200, 403)
    # Streamlit's own protections are on for those who are signed in: another site may neither open the socket, nor read, nor upload.
    socket_headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                      "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg=="}
    opened = {name: status(f"{url}/_stcore/stream", given, Origin=origin, **socket_headers) for name, given, origin in (
        ("own", cookie, url), ("other site", cookie, "http://evil.example"), ("other port", cookie, "http://127.0.0.1:9"),
        ("nobody", "", url))}
    assert opened == {"own": 101, "other site": 403, "other port": 403, "nobody": 403}
    refused = ana.evaluate("""async () => (await fetch('/_stcore/upload_file/a/b', {method: 'PUT', body: 'x'})).status""")
    assert refused == 403, "an upload without the XSRF token"
