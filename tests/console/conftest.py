"""One Chromium for all tests, stacks with different data, and pages that are watched."""

# Playwright is imported late: `make test` loads this file too.
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.testing.console_stack import RunningConsole, console_stack
from fusewire.testing.hostile import make_hostile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from fusewire.testing.browser import PageWatch

AXE = Path(__file__).parent / "vendor/axe-4.14.1.min.js"
OUTCOMES = 1000
PATIENCE_MS = 60_000
"""Only a test that is about to fail waits so long."""

Visit = Callable[..., "AbstractContextManager[PageWatch]"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect

    from fusewire.testing import browser as chromium

    expect.set_options(timeout=PATIENCE_MS)
    with chromium.browser() as running:
        yield running


@pytest.fixture(scope="session")
def visit(browser: Browser) -> Visit:
    """Opens a window: `with visit(console, width=360, color_scheme="dark") as watched`.

    At the end nothing may be wrong with what it has shown.
    """
    from fusewire.testing.browser import PageWatch

    @contextlib.contextmanager
    def run(console: RunningConsole, width: int = 1440, **options: Any) -> Iterator[PageWatch]:
        size: Any = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, reduced_motion="reduce", **options)
        try:
            watched = PageWatch(context, console.url, AXE)
            watched.page.set_default_timeout(PATIENCE_MS)
            yield watched
            assert watched.faults == []
        finally:
            context.close()

    return run


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    """Nothing has been asked yet."""
    with console_stack(tmp_path_factory.mktemp("empty"), 0) as running:
        yield running


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    """A thousand planted outcomes."""
    with console_stack(tmp_path_factory.mktemp("planted"), OUTCOMES) as running:
        yield running


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    """The same, with hostile texts."""
    folder = tmp_path_factory.mktemp("hostile")
    with console_stack(folder, OUTCOMES, make_hostile) as running:
        yield running
