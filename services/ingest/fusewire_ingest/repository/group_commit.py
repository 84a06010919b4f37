"""Group commit: prompts of many clients in one transaction."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fusewire.contracts import Prompt
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire_ingest.repository.submissions import Acceptance, RequestIdentity, Submissions


@dataclass(frozen=True)
class _Waiting:
    """Prompts of one caller of GroupCommit.add, and the future that it waits for."""

    batch: Sequence[Prompt]
    traceparent: str | None
    origin: RequestIdentity | None
    future: asyncio.Future[list[Acceptance]]


class GroupCommit:
    """Commits prompts that arrive during a commit in one transaction: one fsync for many clients.

    Args:
        submissions: the table.
        most: the number of prompts from which on no more join a transaction.
    """

    def __init__(self, submissions: Submissions, most: int = 500) -> None:
        self._submissions = submissions
        self._most = most
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._open: set[asyncio.Future[list[Acceptance]]] = set()
        self._background = BackgroundTasks()

    def start(self) -> None:
        """Start to commit."""
        self._background.start("ingest-commit", self._run())

    def faults(self) -> list[str]:
        """Explain why nothing is committed any more; empty while it is."""
        return self._background.faults()

    async def stop(self) -> None:
        """Stop; callers that still wait get a Transient."""
        await self._background.stop()
        for future in self._open:
            if not future.done():
                future.set_exception(Transient("ingest is stopping"))

    async def add(
        self,
        batch: Sequence[Prompt],
        traceparent: str | None = None,
        origin: RequestIdentity | None = None,
    ) -> list[Acceptance]:
        """Commit prompts as Submissions.add does, together with those of other callers."""
        future: asyncio.Future[list[Acceptance]] = asyncio.get_running_loop().create_future()
        self._open.add(future)
        self._queue.put_nowait(_Waiting(batch, traceparent, origin, future))
        try:
            return await future
        finally:
            self._open.discard(future)

    async def _run(self) -> None:
        while True:
            waiting = [await self._queue.get()]
            size = len(waiting[0].batch)
            # What arrived during the last commit shares the sync of this one (docs/decisions/0009).
            while not self._queue.empty() and size < self._most:
                waiting.append(self._queue.get_nowait())
                size += len(waiting[-1].batch)
            await self._commit(waiting)

    async def _commit(self, waiting: Sequence[_Waiting]) -> None:
        batch: list[Prompt] = []
        traceparents: list[str | None] = []
        origins: list[RequestIdentity | None] = []
        for caller in waiting:
            batch += caller.batch
            traceparents += [caller.traceparent] * len(caller.batch)
            origins += [caller.origin] * len(caller.batch)
        try:
            acceptances = await self._submissions.add(batch, traceparents, origins)
        except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
            await self._fail(waiting, exc)
            return
        reach(CrashPoint.INGEST_COMMITTED)
        remaining = iter(acceptances)
        for caller in waiting:
            share = list(itertools.islice(remaining, len(caller.batch)))
            # A caller that was cancelled does not wait any more.
            if not caller.future.done():
                caller.future.set_result(share)

    async def _fail(self, waiting: Sequence[_Waiting], exc: Exception) -> None:
        """Raise an error at the callers; if one of them may have caused it, commit them singly."""
        # An unavailable database is nobody's fault, and would fail each of them alone too.
        if len(waiting) > 1 and not isinstance(exc, Transient):
            for caller in waiting:
                await self._commit([caller])
            return
        for caller in waiting:
            if not caller.future.done():
                caller.future.set_exception(exc)
