"""A command line with a configuration of its own, and a fake model server in a process of its own."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusewire.testing.command_line import Cli, FakeServer, bare
from fusewire.testing.served import Served

CONFIG = """
[log]
level = "warning"
[http]
port = 0
{models}
[pools.default]
members = ["a", "b", "c"]
judge = "j"
control_share = 0.0
[pools.closed]
members = ["a", "b", "c"]
"""


@contextlib.contextmanager
def fake_models(latency: str) -> Iterator[FakeServer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusewire.testing.model_server", "--port", "0", "--latency-ms", latency],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            yield FakeServer(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with fake_models(str(getattr(request, "param", 5))) as server:
        yield server


def configured(folder: Path, server: FakeServer) -> Cli:
    models = "\n".join(
        f'[models.{name}]\nkind = "remote"\nbase_url = "{server.base_url}"\nmodel = "{name}"' for name in "abcj"
    )
    (folder / "fusewire.toml").write_text(CONFIG.format(models=models))
    return bare(folder)


@pytest.fixture
def cli(tmp_path: Path, server: FakeServer) -> Cli:
    return configured(tmp_path, server)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One stack for all tests of a module."""
    folder = tmp_path_factory.mktemp("served")
    with fake_models("5") as server, configured(folder, server).start("up") as process:
        yield Served(**_running(folder / ".fusewire" / "up.json", process), server=server)


def _running(file: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if file.exists():
            found = json.loads(file.read_text())
            return {"url": found["url"], "nats": found["nats"]}
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the stack did not start: {process.communicate()[1]}")
