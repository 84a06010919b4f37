"""What every test has: its own environment, files in memory, a small model, an order of tests.

No server and no driver is imported here: a test of pure code must start at once.
"""

import fcntl
import functools
import gc
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import structlog

KEPT_ENV = ("FUSEWIRE_NATS_SERVER", "FUSEWIRE_MIGRATIONS")

MakeGguf = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has configured for a Fusewire of its own must not reach a test."""
    for name in os.environ:
        if name.startswith("FUSEWIRE_") and name not in KEPT_ENV:
            monkeypatch.delenv(name)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )


# -- where files of tests lie -----------------------------------------------------------------

MEMORY = Path("/dev/shm")
ROOM = 6 * 1024**3
"""Bytes that must be free there; a run takes less than half of it."""


def pytest_configure() -> None:
    """Keep what tests write in memory, where the machine has room; an own TMPDIR wins.

    Brokers and databases wait for the disk at each commit, and test processes for each other's
    commits. No test can tell the difference: what a killed process has written survives in both.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    room = os.statvfs(MEMORY)
    # Where nothing can be executed, as in many containers, a copy of PostgreSQL could not be.
    if room.f_bavail * room.f_frsize >= ROOM and not room.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from all that is imported and collected: it stays to the end.

    Each process holds some two million such objects, and would look through them again and again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> None:
    """Load hypothesis's profile only for modules with property tests: it takes half a second."""
    if isinstance(collector, pytest.Module) and "hypothesis" in collector.path.read_text():
        _load_profile()


@functools.cache
def _load_profile() -> None:
    """A slow machine is no fault, and a run in CI is the same every time."""
    import hypothesis

    hypothesis.settings.register_profile(
        "fusewire",
        deadline=None,
        derandomize="CI" in os.environ,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("fusewire")


# -- the order of tests -----------------------------------------------------------------------

PROCESSES_PER_CORE = 2
"""Most tests wait for a server more than they compute."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many test processes `-n auto` starts."""
    return PROCESSES_PER_CORE * len(os.sched_getaffinity(0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, in turn one for each process; the rest by module, to share its fixtures.

    pytest-xdist hands each process a slice of the list of equal length, and lets idle ones take
    over from others.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    rest = [item for item in items if not item.get_closest_marker("slow")]
    rest.sort(key=lambda item: _LADDER.index(item.path.relative_to(_TESTS).parts[0]))
    slices = [slow[worker::workers] for worker in range(workers)]
    for _, module in itertools.groupby(rest, key=lambda item: item.path):
        min(slices, key=len).extend(module)
    # Of equal length, so that each process begins where its slice does.
    length = -(-len(items) // workers)
    left = [item for one in slices for item in one[length:]]
    for one in slices:
        missing = length - len(one)
        one[length:] = left[: max(0, missing)]
        left = left[max(0, missing) :]
    items[:] = [item for one in slices for item in one]


_TESTS = Path(__file__).parent
_LADDER = ("chaos", "e2e", "console", "conformance", "unit", "contract", "bench")


# -- a small model ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def make_gguf(tmp_path_factory: pytest.TempPathFactory) -> MakeGguf:
    """Writes a llama with random weights, two layers and a byte vocabulary.

    `types` by the end of a tensor's name, `tied` embeddings, `metadata`, `drop`, `add`.
    """
    from fusewire.testing.tiny_gguf import write_gguf

    def make(
        types: dict[str, str] | None = None,
        *,
        tied: bool = True,
        metadata: dict[str, Any] | None = None,
        drop: str = "",
        add: str = "",
    ) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        chosen = {
            **(types or {"token_embd": "Q8_0"}),
            **({} if types and "" in types else {"": "Q4_1"}),
        }
        write_gguf(path, chosen, is_tied=tied, metadata=metadata or {}, drop=drop, add=add)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_gguf(make_gguf: MakeGguf) -> Path:
    """The types of the model that the product pulls: Q4_1, and Q8_0 for the tied embedding."""
    return make_gguf()


@pytest.fixture(scope="session")
def tiny_folder(
    tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory, session_folder: Path
) -> Path:
    """That model as a folder, converted once for all processes. Who damages it copies it first."""
    from fusewire_worker_edge.importers.convert import import_model

    folder = session_folder / "tiny"
    with (session_folder / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            import_model(tiny_gguf, folder)
    return folder


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
