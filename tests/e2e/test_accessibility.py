"""axe-core finds nothing serious on any page, in either theme and language, filled or empty."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from core.runs import Run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SERIOUS = ("serious", "critical")
FEWEST_RULES = 10  # that looked at something: an empty page passes everything
# Streamlit writes a chosen option and a slider's value in the theme's accent, and white letters on the same accent on a button. On a dark
# page no colour gives both 4.5:1; the button has it, these have what large letters need. What is chosen shows by its frame as well.
WRITTEN_IN_THE_ACCENT = "[data-testid=stMain] :is([data-testid=stButtonGroup] button, [data-testid=stSliderThumbValue])"
LEAST_CONTRAST = 3.0


# Contrast hangs on the theme and names on the language: each page in each of both, without every pair.
@pytest.mark.parametrize(("theme", "lang"), [("light", "en"), ("dark", "zh")])
def test_filled_pages(browser: Browser, studio_url: str, filled_home: Run, theme: str, lang: str, pages: Any) -> None:
    found = {name: _look_at(browser, pages.url(studio_url, name, lang=lang, run=filled_home.id), theme, pages) for name in pages.names}
    assert not any(found.values()), _told(found)


@pytest.mark.parametrize(("theme", "lang"), [("light", "zh"), ("dark", "en")])
def test_pages_of_an_empty_workspace(browser: Browser, empty_studio: str, theme: str, lang: str, pages: Any) -> None:
    found = {name: _look_at(browser, pages.url(empty_studio, name, lang=lang), theme, pages) for name in pages.names}
    assert not any(found.values()), _told(found)


def _look_at(browser: Browser, url: str, theme: str, pages: Any) -> list[dict[str, Any]]:
    """What axe finds of serious or critical impact on the page at `url`, drawn in `theme`."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=theme)
    try:
        page = context.new_page()
        page.goto(url)
        pages.wait_until_drawn(page)
        page.wait_for_timeout(500)  # elements fade in; half-faded letters have too little contrast
        results = Axe().run(page).response
        assert results["testEngine"]["name"] == "axe-core"
        assert len(results["passes"]) >= FEWEST_RULES
        found = [finding for finding in results["violations"] if finding["impact"] in SERIOUS]
        for finding in found:
            finding["nodes"] = [node for node in finding["nodes"] if not (theme == "dark" and _is_excused(page, finding, node))]
        return [finding for finding in found if finding["nodes"]]
    finally:
        context.close()


def _is_excused(page: Page, finding: dict[str, Any], node: dict[str, Any]) -> bool:
    if finding["id"] != "color-contrast" or node["any"][0]["data"]["contrastRatio"] < LEAST_CONTRAST:
        return False
    return page.evaluate("([place, excused]) => document.querySelector(place).closest(excused) !== null",
                         [node["target"][0], WRITTEN_IN_THE_ACCENT])


def _told(found: dict[str, list[dict[str, Any]]]) -> str:
    """What to mend: page, rule, place and reason."""
    lines = [f"{page} {finding['impact']} {finding['id']}: {node['html'][:160]} | {node['failureSummary'].splitlines()[-1].strip()}"
             for page, findings in found.items() for finding in findings for node in finding["nodes"][:6]]
    return "\n".join(lines)
