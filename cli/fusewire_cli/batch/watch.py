"""Follows a batch to its end: progress on stderr, results to the output, Ctrl-C."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Self, TypeVar

from fusewire import replies
from fusewire.lifeline import stop_signals
from fusewire_cli.batch import GROUP, POLL_S
from fusewire_cli.batch.output import Output, is_unsettled
from fusewire_cli.client import Client, Form, IncompleteResponseError, Order
from fusewire_cli.screen import ProgressStyle, note

T = TypeVar("T")

OVER = ("completed", "failed", "expired", "cancelled")
EVERY_S = 10.0
MOST_POLL_S = 1.0
POSITIONS: dict[Order, str] = {"line": "index", "settled": "seq"}
"""By order of results, the key of a line that says where to go on after it."""


class InterruptedRunError(Exception):
    """The user asked to stop before there was a batch to stop."""


class Stop:
    """Ctrl-C, SIGTERM and SIGHUP: the first asks to stop, the second ends at once.

    Args:
        at_once: ends the process; called at the second signal.
        at_last: arranges that the process ends in time, whatever it waits for.
        notice: the message at the first signal.
        drain_s: how long to wait for what is in flight, s.
    """

    def __init__(
        self,
        *,
        at_once: Callable[[], None],
        at_last: Callable[[], None],
        notice: str,
        drain_s: float,
    ) -> None:
        self._at_once = at_once
        self._at_last = at_last
        self._notice = notice
        self._drain_s = drain_s
        self._stop_request = asyncio.Event()
        self._drain_deadline = 0.0

    def listen(self) -> Self:
        """Install the signal handlers."""
        for signal_number in stop_signals():
            asyncio.get_running_loop().add_signal_handler(signal_number, self._handle_signal)
        return self

    @property
    def is_asked(self) -> bool:
        """Whether the user asked to stop."""
        return self._stop_request.is_set()

    @property
    def is_due(self) -> bool:
        """Whether the user asked to stop and `drain_s` is over."""
        return self.is_asked and asyncio.get_running_loop().time() >= self._drain_deadline

    def _handle_signal(self) -> None:
        if self.is_asked:
            self._at_once()
        self._drain_deadline = asyncio.get_running_loop().time() + self._drain_s
        self._stop_request.set()
        self._at_last()
        note(self._notice)

    async def sleep(self, seconds: float) -> None:
        """Pause, or until the user asks to stop."""
        if self.is_asked:
            # The event is set already, so waiting for it would be no pause.
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stop_request.wait()
        except TimeoutError:
            pass

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work that may be abandoned.

        Raises:
            InterruptedRunError: the user asked to stop before it was done.
        """
        task = asyncio.ensure_future(work)
        stop_wait = asyncio.ensure_future(self._stop_request.wait())
        try:
            await asyncio.wait((task, stop_wait), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise InterruptedRunError
            return task.result()
        finally:
            task.cancel()
            stop_wait.cancel()
            await asyncio.gather(task, stop_wait, return_exceptions=True)


def figures(batch: replies.batches.Batch, now_s: float) -> dict[str, Any]:
    """The figures of a batch that its progress shows.

    Args:
        batch: the batch as the API returns it.
        now_s: Unix time, s.
    """
    counts, ours = batch["request_counts"], batch["x_fusewire"]
    eta_at = ours.get("eta_at")
    return {
        "done": counts["completed"] + counts["failed"],
        "total": counts["total"],
        "failed": counts["failed"],
        "degraded": ours["degraded"],
        "rate_per_s": ours["rate_per_s"],
        "eta_s": None if eta_at is None else max(0, round(eta_at - now_s)),
        "cost_usd": ours["cost_usd"],
    }


class Progress:
    """Progress of a batch on stderr.

    A bar on a terminal; elsewhere a JSON line every ten seconds and one at the end.
    """

    def __init__(self, show: ProgressStyle, clock: Callable[[], float] = time.monotonic) -> None:
        if show is ProgressStyle.auto:
            show = ProgressStyle.bar if sys.stderr.isatty() else ProgressStyle.json
        self._show = show
        self._clock = clock
        self._next = clock() + EVERY_S
        self._last: dict[str, Any] | None = None
        self._waiting_for: str | None = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._show is ProgressStyle.bar:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("batch", total=None, more="")
        return self

    def update(self, batch: replies.batches.Batch) -> None:
        """Show the state of a batch."""
        progress = figures(batch, time.time())
        self._last = progress
        waiting_for = batch["x_fusewire"].get("waiting_for")
        is_new = waiting_for != self._waiting_for
        if waiting_for and is_new and self._show is not ProgressStyle.none:
            note(f"waiting: {waiting_for}")
        self._waiting_for = waiting_for
        if self._bar:
            self._bar.update(
                self._task,
                completed=progress["done"],
                total=progress["total"] or None,
                more=_more(progress),
            )
        elif self._show is ProgressStyle.json and self._clock() >= self._next:
            self._next = self._clock() + EVERY_S
            note(json.dumps(progress))

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._show is ProgressStyle.json and self._last:
            note(json.dumps(self._last))


def _more(progress: dict[str, Any]) -> str:
    """The text beside the bar."""
    parts = [
        f"{progress['failed']} failed",
        f"{progress['degraded']} degraded",
        f"{progress['cost_usd']:.4g} USD",
    ]
    if progress["rate_per_s"]:
        parts.append(f"{progress['rate_per_s']:.1f}/s")
    if progress["eta_s"] is not None:
        minutes, seconds = divmod(progress["eta_s"], 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return " · ".join(parts)


async def follow(
    api: Client,
    batch_id: str,
    output: Output | None,
    progress: Progress,
    stop: Stop,
    *,
    cancels: bool,
) -> replies.batches.Batch:
    """Watch a batch until it is over or the user asks to stop; write its results as they come.

    Args:
        api: the service.
        batch_id: the batch.
        output: where results go, if anywhere.
        progress: shows the state of the batch.
        stop: tells when the user asks to stop.
        cancels: whether a stop cancels the batch, waits a moment for what is in flight and
            writes that too; otherwise it only ends the watching.

    Returns:
        The batch in its last state.
    """
    has_cancelled = False
    pause_s = POLL_S
    while True:
        batch = await api.batch(batch_id)
        progress.update(batch)
        new_lines = await write(api, batch_id, output) if output else 0
        if batch["status"] in OVER or _may_leave(stop, cancels, has_cancelled):
            return batch
        if stop.is_asked and not has_cancelled:
            await api.cancel_batch(batch_id, drain=True, reason="interrupted")
            has_cancelled = True
            continue
        pause_s = _next_pause_s(pause_s, new_lines)
        await stop.sleep(pause_s)


def _may_leave(stop: Stop, cancels: bool, has_cancelled: bool) -> bool:
    """Whether the user asked to stop and there is nothing more to wait for."""
    if has_cancelled:
        return stop.is_due
    return stop.is_asked and not cancels


def _next_pause_s(pause_s: float, new_lines: int) -> float:
    """Poll often while results come, and ever less often while none do."""
    return POLL_S if new_lines else min(pause_s * 1.2, MOST_POLL_S)


async def write(api: Client, batch_id: str, output: Output) -> int:
    """Write the results that are settled and not written yet. Returns how many lines."""
    start = output.lines
    results = read_settled(api, batch_id, order=output.order, form=output.form, after=output.after)
    async with contextlib.aclosing(results):
        async for raw, line in results:
            output.take(raw, line)
            if output.lines % GROUP == 0:
                output.flush()
    output.flush()
    return output.lines - start


async def read_settled(
    api: Client, batch_id: str, *, order: Order, form: Form, after: int
) -> AsyncGenerator[tuple[bytes, dict[str, Any]], None]:
    """Settled lines after `after`, up to the last that there is: as bytes, and parsed.

    A response that breaks off is continued after its last whole line.
    """
    position = POSITIONS[order]
    while True:
        page_start = after
        page = api.results(batch_id, order=order, after=after, form=form)
        try:
            async with contextlib.aclosing(page):
                async for raw in page:
                    line = json.loads(raw)
                    if is_unsettled(line):
                        return
                    after = line[position]
                    yield raw, line
        except IncompleteResponseError:
            # Raises an error if the service stays away.
            await api.batch(batch_id)
        else:
            if after == page_start:
                return
