"""Tells workers, who have no database, which candidates have come."""

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
from fusewire_judge.repository import Results

log = structlog.get_logger(__name__)


class StoredCandidates:
    """Answers `fw.stored`. Whoever gets no answer asks again."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus = bus
        self._store = store

    async def start(self) -> None:
        """Begin to answer; one of all judges does."""
        await self._bus.client.subscribe(stored_subject("*"), queue=JUDGE.name, cb=self._answer)

    async def _answer(self, msg: Msg) -> None:
        try:
            found = await self.of(StoredQuery.decode(msg.data))
            await self._bus.client.publish(msg.reply, StoredReply(calls=found).encode())
        except (Transient, ContractError, NatsError, OSError, TimeoutError) as exc:
            log.warning("judge.stored_not_told", fault=type(exc).__name__)

    async def of(self, query: StoredQuery) -> tuple[str, ...]:
        """The calls that need not be made any more. Raises Transient, and what nats-py raises."""
        # In this order: what the judge has taken from the stream meanwhile, it has committed before.
        subjects = {
            call: candidate_subject(query.fusion_id, query.round, call) for call in query.calls
        }
        waiting = {call for call, subject in subjects.items() if await self._holds(subject)}

        def look(connection: Connection) -> set[str]:
            results = Results(connection)
            is_open = results.is_open(query.fusion_id)
            return (
                results.calls_stored(query.fusion_id, query.round) if is_open else set(query.calls)
            )

        committed = await self._store.run(look, write=False)
        return tuple(call for call in query.calls if call in waiting | committed)

    async def waits(self, fusion_id: str) -> bool:
        """Whether something of a fusion is published and not committed yet; so too where the broker cannot be asked."""
        try:
            return await self._holds(plan_subject(fusion_id)) or await self._holds(
                candidate_subjects(fusion_id)
            )
        except (Transient, NatsError, OSError, TimeoutError):
            return True

    async def _holds(self, subject: str) -> bool:
        """Whether the stream holds a message of a subject: what is committed leaves it."""
        try:
            await self._bus.js.get_last_msg(JUDGE.stream, subject)
        except NotFoundError:
            return False
        except APIError as exc:
            raise Transient(f"{JUDGE.stream} cannot be read ({exc.err_code})") from None
        return True
