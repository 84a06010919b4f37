"""Every page, narrow and wide, light and dark, with nothing, much and hostile content to show."""

from typing import Any

import pytest
from playwright.sync_api import Page

from fusewire.testing import hostile as hostile_texts
from fusewire.testing.console_stack import DETAILS, RunningConsole
from fusewire_console.access import Visitor
from fusewire_console.navigation import navigation

OPERATOR = Visitor("default", None, None, frozenset({"admin"}), is_operator=True)
LISTS = [path for _, links in navigation(OPERATOR) for path, _ in links]
OTHERS = ("/sign-in", "/absent")
SHOWN = [
    *(("empty", path) for path in (*LISTS, *OTHERS)),
    *(("planted", path) for path in (*LISTS, *DETAILS)),
    *(("hostile", path) for path in (*LISTS, *DETAILS)),
]
WIDTHS = (360, 1440)
MOST_BYTES = 200_000
"""Of a page with all that it loads. The largest texts are not sent whole."""
MOST_DEPTH = 400
"""More than a page has places that a keyboard reaches."""
_MARK_PLACES = """() => {
  const names = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const radios = new Set();
  const places = [...document.querySelectorAll(names)].filter((place) => {
    if (place.disabled || place.type === "hidden" || !place.checkVisibility()) return false;
    if (place.type !== "radio") return true;
    // Arrow keys move within a group.
    const isFirst = !radios.has(place.name);
    radios.add(place.name);
    return isFirst;
  });
  places.forEach((place, i) => { place.dataset.place = i; });
  return places.length;
}"""
_PLACE = """() => {
  const place = document.activeElement;
  const style = getComputedStyle(place);
  if (!place.dataset.place) return null;
  if (style.outlineStyle === "none") return `no outline: ${place.outerHTML.slice(0, 200)}`;
  return Number(place.dataset.place);
}"""


@pytest.fixture(scope="session")
def consoles(
    empty: RunningConsole, planted: RunningConsole, hostile: RunningConsole
) -> dict[str, RunningConsole]:
    return {"empty": empty, "planted": planted, "hostile": hostile}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("data", "path"), SHOWN)
def test_a_page_is_as_it_should_be(
    consoles: dict[str, RunningConsole], visit: Any, data: str, path: str, width: int
) -> None:
    console = consoles[data]
    faults: list[str] = []
    with visit(console, width=width) as watched:
        for scheme in ("light", "dark"):
            watched.page.emulate_media(color_scheme=scheme)
            watched.open(console.path(path), 404 if path == "/absent" else 200)
            watched.page.wait_for_load_state("networkidle")
            faults += watched.check(f"{path} with {data} at {width} px, {scheme}")
    assert faults == []


def texts(page: Page) -> str:
    return page.locator("main").inner_text()


def test_hostile_texts_are_shown_as_they_are(hostile: RunningConsole, visit: Any) -> None:
    with visit(hostile) as watched:
        for path in ("/outcomes", "/outcomes/{outcome}"):
            watched.open(hostile.path(path))
            assert hostile_texts.MARK in texts(watched.page)


@pytest.mark.parametrize("path", [*LISTS, *DETAILS])
def test_the_keyboard_reaches_everything(planted: RunningConsole, visit: Any, path: str) -> None:
    with visit(planted) as watched:
        watched.open(planted.path(path))
        watched.page.wait_for_load_state("networkidle")
        count = watched.page.evaluate(_MARK_PLACES)
        assert 0 < count < MOST_DEPTH
        places = []
        # Once more around: a page may put the focus somewhere at first, and the window has places.
        for _ in range(count + 5):
            watched.page.keyboard.press("Tab")
            places.append(watched.page.evaluate(_PLACE))
    assert {place for place in places if place is not None} == {*range(count)}


@pytest.mark.parametrize(("data", "path"), SHOWN)
def test_a_page_is_small_and_whole_without_javascript(
    consoles: dict[str, RunningConsole], visit: Any, data: str, path: str
) -> None:
    console = consoles[data]
    with visit(console, java_script_enabled=False) as watched:
        sizes: list[int] = []
        watched.page.on("response", lambda response: sizes.append(len(response.body())))
        watched.open(console.path(path), 404 if path == "/absent" else 200)
        assert watched.page.locator("main h1").inner_text().strip()
        assert sum(sizes) <= MOST_BYTES
