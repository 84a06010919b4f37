"""The stack that a command talks to: the one that runs here, or one of its own for as long as it needs it."""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NoReturn

from fusewire import lifeline
from fusewire.errors import StartupError
from fusewire.settings import Settings, load
from fusewire_cli import builtin

if TYPE_CHECKING:
    from fusewire_cli.client import Client
    from fusewire_cli.local.runner import Stack

URL_ENV = "FUSEWIRE_URL"
"""Where a Fusewire runs that is not of this folder."""
KEY_ENV = "FUSEWIRE_API_KEY"
"""The key that it asks for."""

_own: list["Stack"] = []


def settings() -> Settings:
    """The configuration: fusewire.toml or $FUSEWIRE_CONFIG, else the built-in one."""
    return load(fallback=builtin.chosen())


def is_elsewhere() -> bool:
    """Whether commands talk to a Fusewire that has another configuration than this folder's."""
    return bool(os.environ.get(URL_ENV))


@contextlib.asynccontextmanager
async def client(
    config: Settings, *, processes: bool = False, embeds: bool = True
) -> AsyncIterator["Client"]:
    """A client of the Fusewire at $FUSEWIRE_URL, else of the running stack.

    Where there is neither, of an embedded one that ends with the block.

    Raises:
        StartupError: the embedded stack cannot start, or `embeds` is false and it would be needed.
    """
    from fusewire import telemetry
    from fusewire_cli.client import Client
    from fusewire_cli.local.run_file import running

    url = os.environ.get(URL_ENV) or running(config)
    async with contextlib.AsyncExitStack() as end:
        if url is None:
            if not embeds:
                raise StartupError(
                    "no Fusewire is running here", f"start `fusewire up`, or set {URL_ENV}"
                )
            from fusewire_cli.local.runner import Stack

            config.data_dir.mkdir(parents=True, exist_ok=True)
            log = end.enter_context((config.data_dir / "fusewire.log").open("a", encoding="utf-8"))
            telemetry.configure(config.log, config.telemetry, service="local", stream=log)
            # Any port: nobody else needs to find this one.
            # Nor does a command wait for long at its end: it has waited for its calls already.
            limits = config.limits.model_copy(update={"call_drain_s": config.limits.drain_s})
            own = config.model_copy(
                update={"http": config.http.model_copy(update={"port": 0}), "limits": limits}
            )
            stack = owns(Stack(own, processes=processes))
            await stack.start()
            end.callback(
                lambda: telemetry.configure(
                    config.log, config.telemetry, service="local", stream=sys.stderr
                )
            )
            end.push_async_callback(stack.stop)
            url = stack.url
        yield await end.enter_async_context(Client(url, os.environ.get(KEY_ENV)))


def owns(stack: "Stack") -> "Stack":
    """Note a stack that this process has started, for `end_at_once`."""
    _own.append(stack)
    return stack


def end_soon(code: int) -> None:
    """End this process by force if it has not ended when its stacks must have."""
    lifeline.end_within(
        max((stack.stop_s for stack in _own), default=lifeline.STOP_S), lambda: end_at_once(code)
    )


def end_at_once(code: int) -> NoReturn:
    """End this process and all that it has started, undrained: what was accepted is committed, and goes on later."""
    for stack in _own:
        for pid in filter(None, stack.pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    os._exit(code)
