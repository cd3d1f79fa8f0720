"""Nothing is asked of the outside world, and the studio works through whatever port leads to it."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from core.runs import Run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
HERE = {"127.0.0.1", "localhost"}
# A page is an HTML file, scripts, styles, at least one font, the icon of the tab, and a websocket.
FEWEST_REQUESTS = 8


class Recorder:
    """Every address that a browser context asks for, websockets and workers included."""

    def __init__(self, context: BrowserContext) -> None:
        self.urls: list[str] = []
        self.kinds: set[str] = set()
        context.on("request", lambda request: self._note(request.url, request.resource_type))
        context.on("page", lambda page: page.on("websocket", lambda socket: self._note(socket.url, "websocket")))

    def _note(self, url: str, kind: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob"):
            self.urls.append(url)
            self.kinds.add(kind)

    def hosts(self) -> set[str | None]:
        return {urlsplit(url).hostname for url in self.urls}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_page_asks_anybody_else(browser: Browser, studio_url: str, filled_home: Run, lang: str, pages: Any) -> None:
    for name in pages.names:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, locale=lang)
        try:
            recorder = Recorder(context)
            page = context.new_page()
            page.goto(pages.url(studio_url, name, lang=lang, run=filled_home.id))
            pages.wait_until_drawn(page)
            page.wait_for_timeout(1000)  # the icon of the tab is asked for last
            assert recorder.hosts() <= HERE, (name, recorder.urls)
            assert len(recorder.urls) >= FEWEST_REQUESTS, (name, recorder.urls)
            assert {"document", "script", "font", "websocket"} <= recorder.kinds, (name, recorder.kinds)
        finally:
            context.close()


def test_the_first_visit_asks_nobody_else(browser: Browser, studio_url: str) -> None:
    """Chromium's own look-ups aside, which its options forbid, a fresh profile loads everything anew: the icon too."""
    context = browser.new_context()
    recorder = Recorder(context)
    page = context.new_page()
    page.goto(studio_url)
    expect(page.get_by_test_id("stHeading").locator("h1").first).to_be_visible(timeout=60_000)
    icons = page.locator("link[rel~=icon]")
    expect(icons.first).to_have_attribute("href", re.compile(r"^(/|\./|http://127\.0\.0\.1|data:)"))
    assert recorder.hosts() <= HERE
    context.close()


@pytest.fixture
def forwarded_port(studio_url: str) -> Iterator[int]:
    """Another local port that leads to the studio, byte for byte, as `ssh -L` makes one."""
    target = urlsplit(studio_url).port
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_accept, args=(listener, target), daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.close()


def _accept(listener: socket.socket, target: int) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        far = socket.create_connection(("127.0.0.1", target))
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has gone


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_upload_goes_through_a_forwarded_port(browser: Browser, forwarded_port: int, filled_home: Run, host: str, pages: Any) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    recorder = Recorder(context)
    page = context.new_page()
    page.goto(pages.url(f"http://{host}:{forwarded_port}", "data", lang="en", view="import"))
    pages.wait_until_drawn(page)
    rows = '[{"instruction": "What is a port?", "output": "A number that a program listens at."}]'
    page.locator("input[type=file]").set_input_files({"name": f"through-{host}.json", "mimeType": "application/json",
                                                      "buffer": rows.encode()})
    keep = page.locator(".st-key-data_keep button")
    expect(keep).to_be_enabled(timeout=60_000)
    keep.click()
    expect(page).to_have_url(re.compile("dataset=through"), timeout=60_000)
    expect(page.get_by_test_id("stMetric").first).to_be_visible(timeout=60_000)
    assert {urlsplit(url).netloc for url in recorder.urls} == {f"{host}:{forwarded_port}"}
    context.close()


@pytest.mark.parametrize(("origin", "expected"), [("", 101), ("http://127.0.0.1:9", 403), ("http://evil.example", 403)])
def test_no_other_page_opens_the_websocket(studio_url: str, origin: str, expected: int) -> None:
    """Another program of this machine may serve pages too; theirs are not the studio's."""
    connection = http.client.HTTPConnection(urlsplit(studio_url).netloc, timeout=10)
    connection.request("GET", "/_stcore/stream", headers={
        "Origin": origin or studio_url, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg=="})
    assert connection.getresponse().status == expected
    connection.close()


def test_another_name_is_refused(browser: Browser, studio_url: str) -> None:
    """A page of the outside world that points its own name at this machine gets no websocket (DNS rebinding)."""
    port = urlsplit(studio_url).port
    context = browser.new_context()
    page = context.new_page()
    sockets: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda _: sockets.append(socket.url)))
    page.goto(f"http://studio.localhost:{port}/")
    page.wait_for_timeout(3000)
    assert not sockets
    expect(page.get_by_test_id("stHeading").locator("h1").first).to_have_count(0)
    context.close()
