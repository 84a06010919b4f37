"""What the console's pages cost on a million outcomes. `make bench-console`.

Writes build/bench-console.json. SQLite is filled with planted outcomes (OUTCOMES of them), and
`fusewire up --processes` serves it. For each page:

- `cpu_ms`: CPU time of the console's process for a request, the mean of CPU_REQUESTS after a warm
  one; `api_cpu_ms` is that of ingest, of which pages ask some things;
- `render_ms`: until Chromium has loaded the page and all parts that it asks for, the median of
  RENDERS windows without a cache;
- `bytes`: what it transfers then, headers included.

It never fails for a figure.
"""

import json
import os
import platform
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser

from fusewire.testing.browser import browser
from fusewire.testing.console_stack import DETAILS, RunningConsole, console_stack
from fusewire_console.access import Visitor
from fusewire_console.navigation import navigation

BUILD = Path(__file__).parents[2] / "build"
OPERATOR = Visitor("default", None, None, frozenset({"admin"}), is_operator=True)
PAGES = (
    *(path for _, links in navigation(OPERATOR) for path, _ in links),
    "/outcomes?pool=fast&degraded=yes",
    *DETAILS,
)
CPU_REQUESTS = 5
RENDERS = 3
AIMS = {"cpu_ms": 150.0, "render_ms": 500.0, "bytes": 200_000}
TIMEOUT_S = 120
SERVICES = ("console", "ingest")
SETTLE_S = 300.0
REST_S = 3.0
_LOADED = """() => {
  const all = ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind));
  return {
    render_ms: Math.max(...all.map((entry) => entry.loadEventEnd || entry.responseEnd)),
    bytes: all.reduce((sum, entry) => sum + entry.transferSize, 0),
  };
}"""

Figures = dict[str, Any]


def cpu_s(console: RunningConsole, service: str) -> float:
    """CPU time of a service's process, s."""
    times = psutil.Process(console.pids[service]).cpu_times()
    return float(times.user + times.system)


def settle(console: RunningConsole) -> float:
    """Wait until the processes rest after their start; returns how long that took, s.

    Ingest looks through what it finds in the database, which no page has asked for.
    """
    started = time.perf_counter()
    while time.perf_counter() - started < SETTLE_S:
        before = sum(cpu_s(console, service) for service in SERVICES)
        time.sleep(REST_S)
        if sum(cpu_s(console, service) for service in SERVICES) - before < REST_S / 20:
            break
    return time.perf_counter() - started


def request(url: str) -> int:
    """Load a page without a browser; returns its status."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def measure_cpu(console: RunningConsole, url: str) -> Figures:
    """What a request costs the console and the API."""
    status = request(url)
    before = {service: cpu_s(console, service) for service in SERVICES}
    started = time.perf_counter()
    for _ in range(CPU_REQUESTS):
        request(url)
    seconds = time.perf_counter() - started
    used = {service: cpu_s(console, service) - before[service] for service in before}
    return {
        "status": status,
        "cpu_ms": round(1000 * used["console"] / CPU_REQUESTS, 1),
        "api_cpu_ms": round(1000 * used["ingest"] / CPU_REQUESTS, 1),
        "reply_ms": round(1000 * seconds / CPU_REQUESTS, 1),
    }


def measure_render(running: Browser, url: str) -> Figures:
    """What a window without a cache takes to show it."""
    loads: list[Figures] = []
    for _ in range(RENDERS):
        context = running.new_context(viewport={"width": 1440, "height": 900})
        try:
            page = context.new_page()
            page.goto(url, wait_until="networkidle", timeout=TIMEOUT_S * 1000)
            loads.append(page.evaluate(_LOADED))
        finally:
            context.close()
    return {
        "render_ms": round(statistics.median(load["render_ms"] for load in loads), 1),
        "bytes": round(statistics.median(load["bytes"] for load in loads)),
    }


def bench(outcomes: int) -> Figures:
    """Measure all pages."""
    with tempfile.TemporaryDirectory(prefix="fusewire-console-") as folder:
        say(f"SQLite, {outcomes} outcomes")
        started = time.perf_counter()
        with console_stack(Path(folder), outcomes, processes=True) as console, browser() as running:
            start_seconds = time.perf_counter() - started
            say(f"filled and started in {start_seconds:.0f} s")
            settle_seconds = settle(console)
            say(f"at rest after {settle_seconds:.0f} s")
            pages: Figures = {}
            for path in PAGES:
                url = console.url + console.path(path)
                pages[path] = measure_cpu(console, url) | measure_render(running, url)
                tell(path, pages[path])
            return {
                "outcomes": outcomes,
                "start_seconds": round(start_seconds, 1),
                "settle_seconds": round(settle_seconds, 1),
                "machine": {
                    "cpus": os.cpu_count(),
                    "python": platform.python_version(),
                    "browser": running.version,
                    "load": os.getloadavg()[0],
                },
                "aims": AIMS,
                "pages": pages,
            }


def say(line: str) -> None:
    """Print a line at once, as all of it takes minutes."""
    print(line, flush=True)


def tell(path: str, figures: Figures) -> None:
    """Print what a page costs, and mark what is more than it should be."""
    parts = [
        f"{name} {figures[name]:,.0f}" for name in ("cpu_ms", "api_cpu_ms", "render_ms", "bytes")
    ]
    over = [name for name, aim in AIMS.items() if figures[name] > aim]
    status = "" if figures["status"] == 200 else f"  status {figures['status']}"
    mark = f"  over the aim: {', '.join(over)}" if over else ""
    say(f"  {path:34} {'  '.join(parts)}{status}{mark}")


def main() -> None:
    """Measure, print, write."""
    BUILD.mkdir(exist_ok=True)
    figures = bench(int(os.environ.get("OUTCOMES", "1000000")))
    out = BUILD / "bench-console.json"
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    say(f"written to {out.relative_to(BUILD.parent)}")


if __name__ == "__main__":
    main()
