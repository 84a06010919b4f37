"""Look up which candidates have come: this worker has no database, so it asks the judge."""

from collections.abc import Collection

from nats.errors import Error as NatsError

from fusewire.bus import Bus
from fusewire.contracts import ContractError, StoredQuery, StoredReply
from fusewire.errors import Transient
from fusewire.topology import stored_subject

ASK_S = 5.0
"""Seconds that the judge may take to answer."""


class JudgeLookup:
    """Implements `generate.CandidateLookup` over the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def __call__(
        self, fusion_id: str, round_: int, calls: Collection[str]
    ) -> Collection[str]:
        """Return those of the calls that need not be made any more.

        Raises:
            Transient: no judge answers.
        """
        query = StoredQuery(fusion_id=fusion_id, round=round_, calls=tuple(calls))
        try:
            reply = await self._bus.client.request(
                stored_subject(fusion_id), query.encode(), timeout=ASK_S
            )
            return StoredReply.decode(reply.data).calls
        except (NatsError, OSError, TimeoutError, ContractError) as exc:
            raise Transient(
                f"no judge tells which candidates have come ({type(exc).__name__})"
            ) from None
