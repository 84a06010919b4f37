"""One fusion as server-sent events: its plan, its calls' results, its rounds, its outcome."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator

from fastapi import APIRouter
from fastapi.responses import Response

from fusewire import replies
from fusewire.contracts import Candidate, Plan
from fusewire.errors import TextsDeletedError, Transient
from fusewire.store.history import History, history
from fusewire.store.queries import FusionStatus, as_reply
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.event_encoder import EventEncoder
from fusewire_ingest.api.fusions import not_found_error
from fusewire_ingest.api.stream import COMMENT, EventStream, data
from fusewire_ingest.watching import Ended, EventQueue

WAIT_S = 600.0
"""How long one wait for the outcome lasts; then the next one begins."""
SETTLE_S = 1.0
"""After the first silence of this length SQL is read once more: what was published before the
stream began, and was not stored yet, came in neither way."""

Messages = EventQueue[Plan | Candidate]


def routes(dependencies: Dependencies) -> APIRouter:
    """`/fusions/{id}/events`."""
    router = APIRouter(tags=["fusions"])

    @router.get(
        "/fusions/{fusion_id}/events",
        summary="What happens in a fusion, as server-sent events, until its outcome",
        responses={
            200: {
                "description": "Done",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            }
        },
    )
    async def get(fusion_id: str, caller: ReadCaller) -> Response:
        """What has happened already comes first, and each event at most once.

        - `plan` (`PlanEvent`): the members that are called, and the judge;
        - `round` (`RoundEvent`): further calls that the judge asks for;
        - `candidate` (`CandidateEvent`): the result of a call;
        - `outcome` (`Fusion`): the end;
        - `error` (`ErrorEvent`): the stream ends before the fusion does.

        Comments fill silences.
        """
        # Before its id is part of a subject.
        status = await dependencies.outcomes.get(caller.tenant, fusion_id)
        if status is None:
            raise not_found_error(fusion_id)
        stream = FusionStream(dependencies, caller.tenant, fusion_id)
        async with contextlib.AsyncExitStack() as stack:
            messages = None
            if status.outcome is None:
                messages = await stack.enter_async_context(dependencies.watcher.follow(fusion_id))
            # Its errors have a status only before the stream begins.
            first = await stream.read()
            pieces = stream.pieces(first, messages, status)
            return EventStream(pieces, stack.pop_all(), {}, _ignore_disconnect)

    return router


async def _ignore_disconnect() -> None:
    """Nothing depends on the reader of a stream."""


class FusionStream:
    """The events of one fusion, for one client."""

    def __init__(self, dependencies: Dependencies, tenant: str, fusion_id: str) -> None:
        self._outcomes = dependencies.outcomes
        self._store = dependencies.store
        self._heartbeat_s = dependencies.heartbeat_s
        self._tenant = tenant
        self._fusion_id = fusion_id
        self._encoder = EventEncoder(fusion_id)

    async def read(self) -> History:
        """Read everything that is stored.

        Raises:
            HttpError: the fusion was deleted.
            TextsDeletedError: its texts were deleted.
            Transient: the database does not answer.
        """
        stored_history = await history(self._store, [self._fusion_id])
        if stored_history is None:
            raise not_found_error(self._fusion_id)
        return stored_history

    async def pieces(
        self, first: History, messages: Messages | None, status: FusionStatus
    ) -> AsyncGenerator[bytes, None]:
        """Encode the events.

        Args:
            first: what is stored so far.
            messages: what is published from then on; None if the fusion has ended.
            status: the fusion's.
        """
        yield COMMENT
        for piece in self._encoder.history(first):
            yield piece
        if messages is not None:
            waiting = asyncio.ensure_future(self._wait_for_outcome())
            waiting.add_done_callback(lambda _: messages.end())
            try:
                async with contextlib.aclosing(self._live_pieces(messages)) as live_pieces:
                    async for piece in live_pieces:
                        yield piece
                status = await waiting
                for piece in await self._stored_pieces():
                    yield piece
            except (HttpError, TextsDeletedError, Transient) as exc:
                yield data(_error(exc), "error")
                return
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        yield data(as_reply(status), "outcome")

    async def _live_pieces(self, messages: Messages) -> AsyncGenerator[bytes, None]:
        """Encode what is published, and read SQL where that does not tell enough."""
        is_settled = False
        longest_s = min(SETTLE_S, self._heartbeat_s)
        while not isinstance(message := await messages.next(longest_s), Ended):
            if message is None:
                yield COMMENT
            for piece in await self._encode(message, is_settled=is_settled):
                yield piece
            if message is None:
                is_settled, longest_s = True, self._heartbeat_s

    async def _encode(
        self, message: Plan | Candidate | None, *, is_settled: bool
    ) -> Iterable[bytes]:
        """Encode a message, or what is there after a silence (None)."""
        if isinstance(message, Plan):
            return self._encoder.plan(message)
        if message is None:
            return () if is_settled else await self._stored_pieces()
        if self._encoder.has_round(message.round):
            return self._encoder.candidate(message)
        # A candidate does not tell of its round, which the judge has stored before.
        stored_pieces = await self._stored_pieces()
        return itertools.chain(stored_pieces, self._encoder.candidate(message))

    async def _stored_pieces(self) -> Iterator[bytes]:
        return self._encoder.history(await self.read())

    async def _wait_for_outcome(self) -> FusionStatus:
        while True:
            status = await self._outcomes.get(self._tenant, self._fusion_id, WAIT_S)
            if status is None:
                raise not_found_error(self._fusion_id)
            if status.outcome is not None:
                return status
            if self._outcomes.is_closing:
                message = "this Fusewire stops; the fusion goes on: open the stream again"
                raise HttpError(503, "draining", message)


def _error(exc: HttpError | TextsDeletedError | Transient) -> replies.events.ErrorEvent:
    match exc:
        case HttpError(code=code, message=message):
            return {"code": code, "message": message}
        case TextsDeletedError():
            return {"code": "texts_deleted", "message": str(exc)}
    return {"code": "unavailable", "message": f"{exc}; open the stream again, it costs nothing"}
