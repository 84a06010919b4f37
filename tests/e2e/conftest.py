"""A command line with a configuration of its own, and a fake model server in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusewire.testing.command_line import Cli, FakeServer, bare

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


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    latency = str(getattr(request, "param", 5))
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
def cli(tmp_path: Path, server: FakeServer) -> Cli:
    models = "\n".join(
        f'[models.{name}]\nkind = "remote"\nbase_url = "{server.base_url}"\nmodel = "{name}"' for name in "abcj"
    )
    (tmp_path / "fusewire.toml").write_text(CONFIG.format(models=models))
    return bare(tmp_path)
