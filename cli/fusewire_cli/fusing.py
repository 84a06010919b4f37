"""Many prompts fused, a window of them at a time, for commands that want their outcomes."""

import asyncio
import shlex
import sys
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import uvloop

from fusewire.lifeline import stop_signals
from fusewire_cli.batch import ANSWERED, GROUP, POLL_S
from fusewire_cli.client import ApiError, Client
from fusewire_cli.screen import EXIT_FAULT, EXIT_INTERRUPTED, fail, note, progress
from fusewire_cli.session import end_at_once, end_soon

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, goes_on: bool = True) -> T:
    """Run a command's work.

    Args:
        main: the work.
        goes_on: whether the same command goes on where it was when it is run again.

    Raises:
        SystemExit: it was interrupted, was refused, or cannot reach the service; each with one message.
    """
    try:
        return uvloop.run(_stoppable(main))
    except asyncio.CancelledError:
        if goes_on:
            note(
                f"interrupted; nothing is lost. Go on with:\n  {shlex.join(['fusewire', *sys.argv[1:]])}"
            )
        else:
            note("interrupted; what was accepted is finished by the next Fusewire that runs here")
        sys.exit(EXIT_INTERRUPTED)
    except ApiError as exc:
        fail(exc.message, exc.mend, exc.exit_code)
    except OSError as exc:
        fail(
            f"the service cannot be reached: {exc}",
            "run the same command again; it goes on where it was",
            EXIT_FAULT,
        )


async def _stoppable(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if task.cancelling():
            end_at_once(EXIT_INTERRUPTED)
        end_soon(EXIT_INTERRUPTED)
        task.cancel()

    for sig in stop_signals():
        asyncio.get_running_loop().add_signal_handler(sig, stop)
    return await main


async def fuse(
    api: Client, batch: str, bodies: Mapping[str, str], window: int
) -> dict[str, Mapping[str, Any]]:
    """Submit prompts and wait for all of them.

    Args:
        api: the service.
        batch: their batch. What was submitted under the same id earlier is not asked again.
        bodies: submissions in JSON by custom_id.
        window: how many are in flight at once.

    Returns:
        By custom_id, the outcome as the API shows it, or `{"status": "refused", "error": …}`.
    """
    todo = deque(bodies.items())
    pending: dict[str, str] = {}
    done: dict[str, Mapping[str, Any]] = {}
    failed = 0
    with progress(len(bodies), 0) as bar:
        while len(done) < len(bodies):
            group = [todo.popleft() for _ in range(min(len(todo), window - len(pending), GROUP))]
            if group:
                lines = await api.submit_lines([body for _, body in group], batch)
                for (custom_id, _), result in zip(group, lines, strict=True):
                    if "error" in result:
                        note(f"{custom_id} was refused: {result['error']['message']}")
                        done[custom_id] = {"status": "refused", "error": result["error"]["message"]}
                        failed += 1
                    else:
                        pending[result["id"]] = custom_id
            ended = [
                found for found in await api.get_many(list(pending)) if found["status"] != "running"
            ]
            for found in ended:
                done[pending.pop(found["id"])] = found
                failed += found["status"] not in ANSWERED
            if ended or group:
                bar(len(done), failed)
            if pending and not ended:
                await asyncio.sleep(POLL_S)
    return done
