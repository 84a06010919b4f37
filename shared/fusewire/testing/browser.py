"""For tests: a page in Chromium, and what is wrong with it.

Chromium is the machine's own: `make test-console` installs Debian's if there is none.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    sync_playwright,
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")
"""Containers have neither the rights that its sandbox needs nor much shared memory."""
_REPORT_POLICY = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violated: ${event.effectiveDirective} ${event.blockedURI}`);
});
"""
_FAILED_LOAD = "Failed to load resource"


def chromium() -> str:
    """The path of Chromium.

    Raises:
        FileNotFoundError: there is none.
    """
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError("no Chromium: install the package chromium, or name it in CHROMIUM")
    return path


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield running
        finally:
            running.close()


class PageWatch:
    """A page, and its faults.

    A fault is: a request to another origin, an error on the browser's console, a violation of the
    content security policy, a dialog, an exception of a script.

    Args:
        context: where the page is opened.
        url: the console's address, without a path.
        axe: the file of axe-core.
    """

    def __init__(self, context: BrowserContext, url: str, axe: Path) -> None:
        self._url = url
        self._axe = axe
        self.faults: list[str] = []
        context.add_init_script(_REPORT_POLICY)
        self.page: Page = context.new_page()
        self.page.on("request", self._on_request)
        self.page.on("console", self._on_console)
        self.page.on("dialog", self._on_dialog)
        self.page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))

    def _on_request(self, request: Request) -> None:
        own, other = urlsplit(self._url), urlsplit(request.url)
        if (own.scheme, own.netloc) != (other.scheme, other.netloc) and other.scheme != "data":
            self.faults.append(f"request to another origin: {request.url[:200]}")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text[:300]}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message[:200]}")
        dialog.dismiss()

    def open(self, path: str, status: int = 200) -> None:
        """Load a page of the console, and wait until it is drawn."""
        response = self.page.goto(self._url + path)
        got = response.status if response else None
        if got != status:
            self.faults.append(f"{path} has status {got}, not {status}")
        elif status >= 400:
            # The browser reports the status itself.
            self.faults = [fault for fault in self.faults if _FAILED_LOAD not in fault]

    def check(self, where: str) -> list[str]:
        """The faults so far, with those of the page as it now is; they are then forgotten.

        Args:
            where: which page it is, and how it is shown; part of each fault.
        """
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if wide > 0:
            self.faults.append(f"the page is {wide} px wider than its window")
        self.faults += self._violations()
        faults, self.faults = self.faults, []
        return [f"{where}: {fault}" for fault in faults]

    def _violations(self) -> list[str]:
        """What axe-core finds, by all of its rules but the experimental ones."""
        # As a script of the browser's own: the content security policy forbids a tag.
        self.page.evaluate(self._axe.read_text(encoding="utf-8"))
        violations: list[dict[str, Any]] = self.page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations)"
        )
        return [_describe(violation) for violation in violations]


def _describe(violation: dict[str, Any]) -> str:
    """A violation, with the first element that it concerns."""
    nodes = violation["nodes"]
    first = f"{nodes[0]['html'][:200]} ({nodes[0]['failureSummary'][:300]})"
    return f"axe {violation['id']} at {len(nodes)} elements: {first}"
