"""A batch, followed to its end: progress on stderr, results to the output, Ctrl-C."""

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


class InterruptedRunError(Exception):
    """Somebody asked to stop before there was anything to stop."""


class Stop:
    """Ctrl-C, SIGTERM and SIGHUP: the first asks to stop, the second ends at once.

    Args:
        at_once: ends the process.
        at_last: sees to it that the process ends in time, whatever it waits for.
        notice: what is said at the first.
        drain_s: how long what is in flight is waited for.
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
        self._asked = asyncio.Event()
        self._until = 0.0

    def listen(self) -> Self:
        """From now on."""
        for sig in stop_signals():
            asyncio.get_running_loop().add_signal_handler(sig, self._take)
        return self

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked to stop."""
        return self._asked.is_set()

    @property
    def is_due(self) -> bool:
        """Whether what is in flight has been waited for long enough."""
        return self.is_asked and asyncio.get_running_loop().time() >= self._until

    def _take(self) -> None:
        if self.is_asked:
            self._at_once()
        self._until = asyncio.get_running_loop().time() + self._drain_s
        self._asked.set()
        self._at_last()
        note(self._notice)

    async def sleep(self, seconds: float) -> None:
        """Pause, until somebody asks to stop."""
        if self.is_asked:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work that can be given up. Raises InterruptedRunError when somebody asks to stop."""
        task = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise InterruptedRunError
            return task.result()
        finally:
            task.cancel()
            asked.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)


def figures(batch: replies.batches.Batch, now_s: float) -> dict[str, Any]:
    """What progress says of a batch.

    Args:
        batch: as the API shows it.
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
    """A bar on a terminal; elsewhere a JSON line each ten seconds and one at the end. Both on stderr."""

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
        """Show how a batch stands."""
        self._last = found = figures(batch, time.time())
        waiting_for = batch["x_fusewire"].get("waiting_for")
        if (
            waiting_for
            and waiting_for != self._waiting_for
            and self._show is not ProgressStyle.none
        ):
            note(f"waiting: {waiting_for}")
        self._waiting_for = waiting_for
        if self._bar:
            self._bar.update(
                self._task, completed=found["done"], total=found["total"] or None, more=_more(found)
            )
        elif self._show is ProgressStyle.json and self._clock() >= self._next:
            self._next = self._clock() + EVERY_S
            note(json.dumps(found))

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._show is ProgressStyle.json and self._last:
            note(json.dumps(self._last))


def _more(found: dict[str, Any]) -> str:
    """What stands beside the bar."""
    parts = [
        f"{found['failed']} failed",
        f"{found['degraded']} degraded",
        f"{found['cost_usd']:.4g} USD",
    ]
    if found["rate_per_s"]:
        parts.append(f"{found['rate_per_s']:.1f}/s")
    if found["eta_s"] is not None:
        minutes, seconds = divmod(found["eta_s"], 60)
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
    """Watch a batch until it is over, or until somebody asks to stop, and write its results as they come.

    Args:
        api: the service.
        batch_id: which.
        output: where results go, if anywhere.
        progress: shows how it stands.
        stop: who asks to stop.
        cancels: whether to stop means to stop the batch, wait a moment for what is in flight, and write that too;
            else it means to stop watching.

    Returns:
        The batch as it stands then.
    """
    is_told = False
    pause_s = POLL_S
    while True:
        batch = await api.batch(batch_id)
        progress.update(batch)
        written = await write(api, batch_id, output) if output else 0
        if batch["status"] in OVER or (stop.is_asked and not cancels) or (is_told and stop.is_due):
            return batch
        if stop.is_asked and not is_told:
            await api.cancel_batch(batch_id, drain=True, reason="interrupted")
            is_told = True
            continue
        pause_s = POLL_S if written else min(pause_s * 1.2, MOST_POLL_S)
        await stop.sleep(pause_s)


async def write(api: Client, batch_id: str, output: Output) -> int:
    """Write what has settled and is not written; returns how many lines."""
    start = output.lines
    found = settled(api, batch_id, order=output.order, form=output.form, after=output.after)
    async with contextlib.aclosing(found):
        async for raw, line in found:
            output.take(raw, line)
            if output.lines % GROUP == 0:
                output.flush()
    output.flush()
    return output.lines - start


async def settled(
    api: Client, batch_id: str, *, order: Order, form: Form, after: int
) -> AsyncGenerator[tuple[bytes, dict[str, Any]], None]:
    """Settled lines after `after`, as they came and as they read, up to the last that there is."""
    while True:
        before, is_whole = after, True
        page = api.results(batch_id, order=order, after=after, form=form)
        try:
            async with contextlib.aclosing(page):
                async for raw in page:
                    line = json.loads(raw)
                    if is_unsettled(line):
                        return
                    after = line["index" if order == "line" else "seq"]
                    yield raw, line
        except IncompleteResponseError:
            is_whole = False
            # Ends with an error where the service stays away.
            await api.batch(batch_id)
        if is_whole and after == before:
            return
