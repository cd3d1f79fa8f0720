"""The studio opens: no error, the project's theme, and nothing asked of the outside world."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_the_first_page_opens(page: Page, studio_url: str) -> None:
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(studio_url)
    expect(page.get_by_test_id("stHeading").first).to_be_visible(timeout=30_000)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    page.wait_for_timeout(1000)  # the icon of the tab is asked for last
    assert hosts - {None} == {"127.0.0.1"}
    font = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).fontFamily")
    assert "Noto Sans CJK SC" in font, "the theme of .streamlit/config.toml was not read"
