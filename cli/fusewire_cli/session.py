"""The Fusewire that a command talks to: the one that runs here, or one of its own.

One of its own ends with the command.
"""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NoReturn

from fusewire import lifeline
from fusewire.configuration import load
from fusewire.errors import StartupError
from fusewire.settings import Settings
from fusewire_cli import builtin

if TYPE_CHECKING:
    from fusewire_cli.client import Client
    from fusewire_cli.local.runner import Stack

URL_ENV = "FUSEWIRE_URL"
"""The address of a Fusewire that is not this folder's."""
KEY_ENV = "FUSEWIRE_API_KEY"
"""The API key for it."""

_started_stacks: list["Stack"] = []


def settings() -> Settings:
    """The configuration: fusewire.toml or $FUSEWIRE_CONFIG, else the built-in one."""
    return load(fallback=builtin.configuration())


def is_elsewhere() -> bool:
    """Whether commands talk to a Fusewire at $FUSEWIRE_URL, with a configuration of its own."""
    return bool(os.environ.get(URL_ENV))


@contextlib.asynccontextmanager
async def client(
    config: Settings, *, processes: bool = False, embeds: bool = True
) -> AsyncIterator["Client"]:
    """A client of the Fusewire at $FUSEWIRE_URL, else of the running stack.

    If there is neither, an embedded stack is started, which ends with the block.

    Args:
        config: the configuration; its data folder says whether a stack runs.
        processes: whether an embedded stack runs each service as a process of its own.
        embeds: whether an embedded stack may be started.

    Raises:
        StartupError: the embedded stack cannot start, or is needed and `embeds` is false.
    """
    from fusewire import telemetry
    from fusewire_cli.client import Client
    from fusewire_cli.local.run_file import running

    url = os.environ.get(URL_ENV) or running(config)
    async with contextlib.AsyncExitStack() as exit_stack:
        if url is None:
            if not embeds:
                raise StartupError(
                    "no Fusewire is running here", f"start `fusewire up`, or set {URL_ENV}"
                )
            from fusewire_cli.local.runner import Stack

            config.data_dir.mkdir(parents=True, exist_ok=True)
            log = exit_stack.enter_context(
                (config.data_dir / "fusewire.log").open("a", encoding="utf-8")
            )
            telemetry.configure(config.log, config.telemetry, service="local", stream=log)
            # Port 0, any free one, and no other: no other process needs to find this stack.
            # A command has waited for its calls already, so its stack need not drain them long.
            limits = config.limits.model_copy(update={"call_drain_s": config.limits.drain_s})
            http = config.http.model_copy(update={"port": 0, "operations_port": None})
            console = config.console.model_copy(update={"enabled": False})
            changes = {"http": http, "limits": limits, "console": console}
            own_config = config.model_copy(update=changes)
            stack = register(Stack(own_config, processes=processes))
            await stack.start()
            exit_stack.callback(
                lambda: telemetry.configure(
                    config.log, config.telemetry, service="local", stream=sys.stderr
                )
            )
            exit_stack.push_async_callback(stack.stop)
            url = stack.url
        yield await exit_stack.enter_async_context(Client(url, os.environ.get(KEY_ENV)))


def register(stack: "Stack") -> "Stack":
    """Register a stack that this process starts, for `end_at_once`. Returns it."""
    _started_stacks.append(stack)
    return stack


def end_soon(code: int) -> None:
    """End this process by force if it still runs after its stacks' time to stop."""
    stop_s = max((stack.stop_s for stack in _started_stacks), default=lifeline.STOP_S)
    lifeline.end_within(stop_s, lambda: end_at_once(code))


def end_at_once(code: int) -> NoReturn:
    """Kill this process and all processes that it has started, without draining.

    Nothing accepted is lost: it is committed, and the next start goes on with it.
    """
    for stack in _started_stacks:
        for pid in filter(None, stack.pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    os._exit(code)
