"""The stack that a command talks to: the one that runs here, or one of its own for as long as it needs it."""

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from fusewire.settings import Settings, load, read_file

if TYPE_CHECKING:
    from fusewire_cli.client import Client

BUILTIN = Path(__file__).parent / "builtin.toml"


def settings() -> Settings:
    """The configuration: fusewire.toml or $FUSEWIRE_CONFIG, else the built-in one."""
    return load(fallback=read_file(BUILTIN))


@contextlib.asynccontextmanager
async def client(config: Settings, *, processes: bool = False) -> AsyncIterator["Client"]:
    """A client of the running stack; where there is none, of an embedded one that ends with the block.

    Raises:
        StartupError: the embedded stack cannot start.
    """
    from fusewire import telemetry
    from fusewire_cli.client import Client
    from fusewire_cli.local.runner import Stack, running

    url = running(config)
    async with contextlib.AsyncExitStack() as end:
        if url is None:
            config.data_dir.mkdir(parents=True, exist_ok=True)
            log = end.enter_context((config.data_dir / "fusewire.log").open("a", encoding="utf-8"))
            telemetry.configure(config.log, config.telemetry, service="local", stream=log)
            # Any port: nobody else needs to find this one.
            own = config.model_copy(update={"http": config.http.model_copy(update={"port": 0})})
            stack = Stack(own, processes=processes)
            await stack.start()
            end.callback(lambda: telemetry.configure(config.log, config.telemetry, service="local", stream=sys.stderr))
            end.push_async_callback(stack.stop)
            url = stack.url
        yield await end.enter_async_context(Client(url))
