"""Fuses many prompts, a window of them at a time, for commands that need their outcomes."""

import asyncio
import shlex
import sys
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import uvloop

from fusewire.contracts import ANSWERED
from fusewire.lifeline import stop_signals
from fusewire_cli.batch import GROUP, POLL_S
from fusewire_cli.client import ApiError, Client
from fusewire_cli.screen import EXIT_FAULT, EXIT_INTERRUPTED, fail, note, show_progress
from fusewire_cli.session import end_at_once, end_soon

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, goes_on: bool = True) -> T:
    """Run a command's work.

    Args:
        main: the work.
        goes_on: whether the same command, run again, goes on where it was.

    Raises:
        SystemExit: the command was interrupted, the API refused something, or the service
            cannot be reached; each with one message.
    """
    try:
        return uvloop.run(_stoppable(main))
    except asyncio.CancelledError:
        if goes_on:
            note("interrupted; nothing is lost. Go on with:")
            note(f"  {shlex.join(['fusewire', *sys.argv[1:]])}")
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
    """Await the work; cancel it at the first signal to stop, end the process at the second."""
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if task.cancelling():
            end_at_once(EXIT_INTERRUPTED)
        end_soon(EXIT_INTERRUPTED)
        task.cancel()

    for signal_number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
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
    waiting = deque(bodies.items())
    in_flight: dict[str, str] = {}
    outcomes: dict[str, Mapping[str, Any]] = {}
    failed_count = 0
    with show_progress(len(bodies), 0) as update:
        while len(outcomes) < len(bodies):
            size = min(len(waiting), window - len(in_flight), GROUP)
            group = [waiting.popleft() for _ in range(size)]
            refusals = await _submit(api, batch, group, in_flight)
            finished_fusions = await _collect_finished(api, in_flight)
            outcomes |= refusals | finished_fusions
            failed_count += len(refusals) + _count_failed(finished_fusions)
            if finished_fusions or group:
                update(len(outcomes), failed_count)
            if in_flight and not finished_fusions:
                await asyncio.sleep(POLL_S)
    return outcomes


async def _submit(
    api: Client, batch: str, group: Sequence[tuple[str, str]], in_flight: dict[str, str]
) -> dict[str, Mapping[str, Any]]:
    """Submit a group of prompts.

    Args:
        api: the service.
        batch: their batch.
        group: custom_ids and submissions.
        in_flight: by fusion id, the custom_id; the accepted prompts are added.

    Returns:
        By custom_id, the refusals.
    """
    refusals: dict[str, Mapping[str, Any]] = {}
    if not group:
        return refusals
    results = await api.submit_lines([body for _, body in group], batch)
    for (custom_id, _), result in zip(group, results, strict=True):
        if "error" in result:
            message = result["error"]["message"]
            note(f"{custom_id} was refused: {message}")
            refusals[custom_id] = {"status": "refused", "error": message}
        else:
            in_flight[result["id"]] = custom_id
    return refusals


async def _collect_finished(api: Client, in_flight: dict[str, str]) -> dict[str, Mapping[str, Any]]:
    """By custom_id, the fusions that are finished; they are removed from `in_flight`."""
    finished_fusions: dict[str, Mapping[str, Any]] = {}
    for fusion in await api.get_many(list(in_flight)):
        if fusion["status"] != "running":
            finished_fusions[in_flight.pop(fusion["id"])] = fusion
    return finished_fusions


def _count_failed(fusions: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(fusion["status"] not in ANSWERED for fusion in fusions.values())
