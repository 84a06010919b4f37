"""`fusewire up`."""

import asyncio
import signal

import uvloop

from fusewire import telemetry
from fusewire_cli.local.runner import Stack, wanted
from fusewire_cli.screen import note
from fusewire_cli.session import settings


def up(*, processes: bool) -> None:
    """Run until Ctrl-C or SIGTERM, then drain."""
    config = settings()
    telemetry.configure(config.log, config.telemetry, service="up")

    async def main() -> None:
        stop = asyncio.Event()
        for sig in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(sig, stop.set)
        stack = Stack(config, processes=processes)
        await stack.start()
        print(f"API       {stack.url}/v1/fusions", flush=True)
        print(f"Health    {stack.url}/healthz  {stack.url}/readyz  {stack.url}/metrics", flush=True)
        print(f"Data      {config.data_dir.resolve()}", flush=True)
        print(f"Services  {', '.join(wanted(config))}", flush=True)
        print("Ctrl-C drains and stops.", flush=True)
        await stop.wait()
        note("draining …")
        await stack.stop()

    uvloop.run(main())
