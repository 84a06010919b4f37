"""A command line with its own configuration, and a fake model server in its own process."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from fusewire.testing.command_line import Cli, FakeServer, address, background, bare
from fusewire.testing.eventually import until
from fusewire.testing.openai_document import CheckedTransport, Document
from fusewire.testing.served import RunningStack

CONFIG = """
[log]
level = "warning"
[http]
port = 0
[limits]
# Where a model never answers, the end of a test shall not wait for it.
call_drain_s = 2
{models}
[pools.default]
members = ["a", "b", "c"]
judge = "j"
deadline_s = 250
control_share = 0.0
[pools.closed]
members = ["a", "b", "c"]
deadline_s = 250
"""


@contextlib.contextmanager
def fake_models(latency: str) -> Iterator[FakeServer]:
    command = [
        sys.executable,
        "-m",
        "fusewire.testing.model_server",
        "--port",
        "0",
        "--latency-ms",
        latency,
    ]
    with background(command, cwd=Path.cwd(), env=os.environ) as process:
        until(
            lambda: process.stdout.endswith("\n") or process.returncode is not None,
            "the fake's port",
        )
        yield FakeServer(json.loads(process.stdout)["port"])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with fake_models(str(getattr(request, "param", 5))) as server:
        yield server


def configured(folder: Path, server: FakeServer, *, breaker: bool = True) -> Cli:
    models = "\n".join(
        f'[models.{name}]\nkind = "remote"\nbase_url = "{server.base_url}"\nmodel = "{name}"'
        f"\nbreaker = {str(breaker).lower()}"
        for name in "abcj"
    )
    (folder / "fusewire.toml").write_text(CONFIG.format(models=models))
    return bare(folder)


@pytest.fixture
def cli(tmp_path: Path, server: FakeServer) -> Cli:
    return configured(tmp_path, server)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for all tests of a module."""
    folder = tmp_path_factory.mktemp("served")
    with fake_models("5") as server:
        # The failures of one test must not keep the next one's calls back.
        cli = configured(folder, server, breaker=False)
        with cli.start("up") as process:
            url = address(cli, process)
            yield RunningStack(url, folder / ".fusewire", server)


@pytest.fixture
def checked() -> Iterator[httpx2.Client]:
    """A client for an SDK: whatever is answered is held against OpenAI's own document."""
    transport = CheckedTransport(Document(Path(__file__).parent / "data" / "openai_replies.json"))
    with httpx2.Client(transport=transport, timeout=httpx2.Timeout(600, connect=5)) as client:
        yield client
    assert transport.faults == []
