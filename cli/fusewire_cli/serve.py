"""`fusewire up`: run the whole stack in the foreground."""

import asyncio
from typing import Literal

import typer
import uvloop

from fusewire import lifeline, telemetry
from fusewire.configuration import find_file
from fusewire.service import end_stalled
from fusewire.settings import Settings
from fusewire_cli import builtin
from fusewire_cli.local.runner import Stack, service_names
from fusewire_cli.screen import EXIT_FAULT, EXIT_INTERRUPTED, note
from fusewire_cli.session import end_at_once, register, settings


def up(*, processes: bool, behind_proxy: bool) -> None:
    """Run until Ctrl-C, SIGTERM, SIGHUP or a fault that only a new start can mend, then drain."""
    config = settings()
    if behind_proxy:
        # Keys too: through the proxy others reach even an address of this machine alone.
        overrides = {"allow_insecure": True, "keys": "required"}
        config = config.model_copy(update={"http": config.http.model_copy(update=overrides)})
    if find_file() is None:
        note(builtin.offer())
    telemetry.configure(config.log, config.telemetry, service="up")
    if code := uvloop.run(_serve(config, processes=processes)):
        raise typer.Exit(code)


async def _serve(config: Settings, *, processes: bool) -> int:
    """Run the stack until it has to stop. Returns the exit code."""
    stop = asyncio.Event()
    stack = register(Stack(config, processes=processes))

    def ask_to_stop() -> None:
        if stop.is_set():
            note("ended at once: calls under way are made again, and may be paid for twice")
            end_at_once(EXIT_INTERRUPTED)
        lifeline.end_within(stack.stop_s, lambda: end_at_once(EXIT_FAULT))
        stop.set()

    for signal_number in lifeline.stop_signals():
        asyncio.get_running_loop().add_signal_handler(signal_number, ask_to_stop)
    lifeline.on_stall(asyncio.get_running_loop(), end_stalled)
    starting, stopping = asyncio.create_task(stack.start()), asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    starting.result()
    _show(stack, config)
    faults = await _wait_for_end(stack, stopping)
    if faults:
        lifeline.end_within(stack.stop_s, lambda: end_at_once(EXIT_FAULT))
    for fault in faults:
        note(f"fault: {fault}")
    note("draining …")
    await stack.stop()
    return EXIT_FAULT if faults else 0


def _show(stack: Stack, config: Settings) -> None:
    """Print where everything is."""
    print(f"API       {stack.url}/v1/fusions", flush=True)
    if stack.console_url:
        print(f"Console   {stack.console_url}/", flush=True)
    print(f"Health    {stack.url}/healthz  {stack.url}/readyz  {stack.url}/metrics", flush=True)
    print(f"Data      {config.data_dir.resolve()}", flush=True)
    print(f"Services  {', '.join(service_names(config))}", flush=True)
    print("Ctrl-C drains and stops; once more, and it stops at once.", flush=True)


async def _wait_for_end(stack: Stack, stopping: asyncio.Task[Literal[True]]) -> list[str]:
    """Wait until the user asks to stop or the stack fails. Returns the faults, if it failed."""
    failing = asyncio.create_task(stack.faulty())
    await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    faults = failing.result() if failing.done() else []
    failing.cancel()
    return faults
