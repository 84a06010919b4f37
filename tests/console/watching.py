"""What is wrong with a page is seen: each kind of fault, planted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from fusewire.testing.browser import PageWatch
from fusewire_console.guard import HEADERS

URL = "http://127.0.0.1:9"
"""Nothing listens there: all is answered by the test."""
AXE = Path(__file__).parent / "vendor/axe-4.14.1.min.js"
PAGE = '<!doctype html><html lang="en"><title>Page</title><main><h1>Page</h1>{}</main></html>'
FAULTS = {
    "<p>nothing</p>": None,
    '<img alt="" src="http://elsewhere.test/a.png">': "request to another origin",
    '<p style="color: red">red</p>': "policy violated: style-src",
    "<script>alert(1)</script>": "policy violated: script-src",
    '<script src="/dialog.js"></script>': "dialog: planted",
    '<script src="/broken.js"></script>': "exception: planted",
    '<img alt="" src="/absent.png">': "Failed to load resource",
    '<img src="/icon.svg">': "axe image-alt",
    '<svg width="2000" height="9" aria-hidden="true"></svg>': "wider than its window",
}
SCRIPTS = {"/dialog.js": 'alert("planted")', "/broken.js": 'throw new Error("planted")'}


@pytest.fixture
def watched(browser: Browser) -> Iterator[PageWatch]:
    context = browser.new_context()
    yield PageWatch(context, URL, AXE)
    context.close()


@pytest.mark.parametrize(("body", "fault"), FAULTS.items())
def test_a_fault_of_a_page_is_seen(watched: PageWatch, body: str, fault: str | None) -> None:
    def reply(route: Route) -> None:
        path = route.request.url.removeprefix(URL)
        if path in SCRIPTS:
            route.fulfill(body=SCRIPTS[path], content_type="text/javascript")
        elif path == "/page":
            route.fulfill(body=PAGE.format(body), content_type="text/html", headers=HEADERS)
        elif path == "/icon.svg":
            svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
            route.fulfill(body=svg, content_type="image/svg+xml")
        else:
            route.fulfill(status=404)

    watched.page.route("**/*", reply)
    watched.open("/page")
    watched.page.wait_for_load_state("networkidle")
    faults = watched.check("planted")
    if fault is None:
        assert faults == []
    else:
        assert any(fault in text for text in faults), faults


def test_a_status_that_is_not_meant_is_a_fault(watched: PageWatch) -> None:
    watched.page.route("**/*", lambda route: route.fulfill(status=404, body=PAGE.format("")))
    watched.open("/page")
    assert any("status 404, not 200" in fault for fault in watched.faults)
