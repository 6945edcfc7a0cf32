"""The site in Chromium: every page, on a wide and on a narrow screen, light and dark, and the search."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="needs Playwright: nox -s docs")

ENGLISH = [("zeroth", "selectors.html"), ("mixture_sample_rule", "configuration.html"), ("glossary", "glossary.html")]
ENGLISH += [("StoppedError", "reference/errors.html"), ("get_weighted_loss", "reference/api/interfaces.html")]
CHINESE = ["训练", "数据", "选择器"]


class Watched:
    """A page of the browser, and what it did that it must not do."""

    def __init__(self, context, address: str) -> None:
        self.page, self.faults = context.new_page(), []
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda said: self.faults.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on(
            "response", lambda answer: answer.status >= 400 and self.faults.append(f"{answer.status}: {answer.url}")
        )
        self.page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:")) or self.faults.append(f"asked for {request.url}")
            ),
        )

    def _failed(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # what the page before still asked for when the next one was opened
            self.faults.append(f"{request.failure}: {request.url}")


LOOK = """() => ({
    over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src),
    title: document.querySelector('article h1')?.textContent.trim() ?? '',
})"""
SCHEMES = {"light": "default", "dark": "slate"}


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_shows_without_an_error_a_request_elsewhere_or_sideways_scrolling(site, address, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    watched, wrong = Watched(context, address), []
    places = [str(file.relative_to(site)) for file in sorted(site.rglob("*.html")) if file.name != "404.html"]
    for place in places:
        watched.page.goto(address + place, wait_until="load")
        for scheme, shown in SCHEMES.items():
            watched.page.emulate_media(color_scheme=scheme)
            watched.page.evaluate(f"document.body.dataset.mdColorScheme = '{shown}'")  # as the switch does
            found = watched.page.evaluate(LOOK)
            faults = [*watched.faults, *(f"broken image {image}" for image in found["broken"])]
            faults += [f"{found['over']} px too wide"] if found["over"] > 0 else []
            faults += [] if found["title"] else ["no heading"]
            wrong += [(place, scheme, fault) for fault in faults]
            watched.faults.clear()
    context.close()
    assert len(places) >= 35
    assert wrong == []


@pytest.mark.parametrize(("scheme", "shown"), SCHEMES.items())
def test_a_page_is_light_or_dark_as_the_system_is_until_the_switch_says_otherwise(address, browser, scheme, shown):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    assert page.evaluate("document.body.dataset.mdColorScheme") == shown
    page.click("label.md-header__button[for^=__palette]:visible")
    page.reload()
    assert page.evaluate("document.body.dataset.mdColorScheme") == ({*SCHEMES.values()} - {shown}).pop()
    context.close()


def found_by_search(browser, address: str, start: str, words: str) -> list[str]:
    """Returns the pages that the search finds, typed into the field of a page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    watched = Watched(context, address)
    watched.page.goto(address + start)
    watched.page.fill("input.md-search__input", words)
    watched.page.wait_for_selector(".md-search-result__link", state="attached")  # shown once the field has the focus
    links = watched.page.eval_on_selector_all(".md-search-result__link", "links => links.map((link) => link.href)")
    context.close()
    assert watched.faults == []
    return [link.removeprefix(address).partition("#")[0].partition("?")[0] for link in links]


def test_the_search_works_on_pages_opened_from_disk(site, browser):
    disk = f"{site.as_uri()}/"
    assert "selectors.html" in found_by_search(browser, disk, "reference/keys.html", "zeroth")


@pytest.mark.parametrize(("words", "place"), ENGLISH)
def test_the_search_finds_english_words_and_names_of_code(browser, address, words, place):
    assert place in found_by_search(browser, address, "index.html", words)


@pytest.mark.parametrize("words", CHINESE)
def test_the_search_finds_chinese_words(site, browser, address, words):
    if not (site / "zh").is_dir():
        pytest.skip("there is no page in Chinese")
    assert any(place.startswith("zh/") for place in found_by_search(browser, address, "zh/index.html", words))


def test_the_language_switch_leads_to_the_same_page_or_where_there_is_none_to_the_first(site, browser, address):
    if not (site / "zh").is_dir():
        pytest.skip("there is no page in Chinese")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    for file in sorted((site / "zh").rglob("*.html")):
        place = str(file.relative_to(site))
        page.goto(address + place)
        there = page.eval_on_selector_all(".md-select__link", "links => links.map((link) => link.href)")
        english = place.removeprefix("zh/")
        assert there == [address + (english if (site / english).exists() else "index.html"), address + place]
    context.close()
