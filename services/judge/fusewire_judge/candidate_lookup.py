"""Answers workers, which have no database, which candidates are stored."""

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError
from sqlalchemy import Connection

from fusewire.bus import Bus
from fusewire.contracts import ContractError, StoredQuery, StoredReply
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.topology import (
    JUDGE,
    candidate_subject,
    candidate_subjects,
    plan_subject,
    stored_subject,
)
from fusewire_judge.repository.results import Results

log = structlog.get_logger(__name__)


class StoredCandidates:
    """Answers requests on `fw.stored`. A worker that gets no answer sends its request again."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus = bus
        self._store = store

    async def start(self) -> None:
        """Subscribe; each request goes to one of all judges."""
        await self._bus.client.subscribe(stored_subject("*"), queue=JUDGE.name, cb=self._answer)

    async def _answer(self, msg: Msg) -> None:
        try:
            calls = await self.stored_calls(StoredQuery.decode(msg.data))
            await self._bus.client.publish(msg.reply, StoredReply(calls=calls).encode())
        except (Transient, ContractError, NatsError, OSError, TimeoutError) as exc:
            log.warning("judge.stored_not_told", fault=type(exc).__name__)

    async def stored_calls(self, query: StoredQuery) -> tuple[str, ...]:
        """Return the calls of a query that need not be made any more, in its order.

        Raises:
            Transient: the stream or the database cannot be read; and what nats-py raises.
        """
        # The stream first, the database second: what the judge takes from the stream in
        # between, it has committed before (docs/decisions/0041).
        pending_calls = set()
        for call in query.calls:
            if await self._has_message(candidate_subject(query.fusion_id, query.round, call)):
                pending_calls.add(call)

        def find_calls(connection: Connection) -> set[str]:
            results = Results(connection)
            if not results.is_open(query.fusion_id):
                return set(query.calls)
            return results.stored_calls(query.fusion_id, query.round)

        committed_calls = await self._store.run(find_calls, write=False)
        stored_calls = pending_calls | committed_calls
        return tuple(call for call in query.calls if call in stored_calls)

    async def has_pending(self, fusion_id: str) -> bool:
        """Tell whether a plan or candidate of a fusion is published and not committed yet.

        True also if the broker cannot be asked.
        """
        try:
            return await self._has_message(plan_subject(fusion_id)) or await self._has_message(
                candidate_subjects(fusion_id)
            )
        except (Transient, NatsError, OSError, TimeoutError):
            return True

    async def _has_message(self, subject: str) -> bool:
        """Tell whether the stream holds a message of a subject: what is committed leaves it."""
        try:
            await self._bus.js.get_last_msg(JUDGE.stream, subject)
        except NotFoundError:
            return False
        except APIError as exc:
            raise Transient(f"{JUDGE.stream} cannot be read ({exc.err_code})") from None
        return True
