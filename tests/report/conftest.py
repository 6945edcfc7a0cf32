"""A browser for the page: the system's Chromium, driven by Playwright; without either the tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataflex.report.write import write_report

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A browser that is started once."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page that is open, and what it did that it must not do.

    Attributes:
        page: Playwright's page.
        faults: Messages of the console, errors, and requests to anything but the file itself.
    """

    def __init__(self, page) -> None:
        self.page, self.faults = page, []
        page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self._heard(request.url))

    def _heard(self, url: str) -> None:
        if not url.startswith(("data:", self.page.url if self.page.url != "about:blank" else "file:")):
            self.faults.append(url)

    def scroll(self) -> None:
        """Goes down the whole page, so that every plot is drawn."""
        self.page.evaluate(
            """async () => {
                for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {
                    window.scrollTo({ top: y, behavior: 'instant' });
                    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                }
            }"""
        )


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Callable[..., Opened]]:
    """``opened(folder, ..., width=1280, scheme="light", comparison=...)`` writes a page and opens it."""
    contexts = []

    def open_(*folders: Path, width: int = 1280, scheme: str = "light", comparison=None) -> Opened:
        file = write_report(folders, into=tmp_path / "page.html", comparison=comparison)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.set_default_timeout(60_000)
        found.page.goto(file.as_uri())
        return found

    yield open_
    for context in contexts:
        context.close()
