"""The intake on the bus: producers that already live there leave prompts at `fw.in.<tenant>`."""

import json
import re
from typing import Any

import structlog
from nats.errors import Error as NatsError

from fusewire.bus import Bus, Delivery
from fusewire.contracts import NAME
from fusewire.errors import UnacceptableMessage
from fusewire_ingest.admission.admit import RefusedError
from fusewire_ingest.intake import Intake

log = structlog.get_logger(__name__)

REPLY_TO = "Fw-Reply-To"
"""The header with the subject at which a producer wants to hear what became of its prompt."""
_INBOX = re.compile(r"_INBOX[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)+", re.ASCII)
MOST_SUBJECT = 256


class BusSubscriber:
    """Takes submissions from FW_IN, each a Submission in JSON. A refused one goes to FW_DEAD with the reason."""

    def __init__(self, intake: Intake, bus: Bus) -> None:
        self._intake = intake
        self._bus = bus

    async def handle(self, delivery: Delivery) -> None:
        """Commit one submission, then answer. Its custom_id, where it has none, is its Nats-Msg-Id or its place.

        The answer is `{"id", "custom_id", "is_repetition"}` or `{"error": {"code", "message", "param"}}`. It is
        sent once, on core NATS: a producer that hears nothing sends its prompt again.
        """
        tenant = delivery.subject.rpartition(".")[2]
        reply_to = delivery.headers.get(REPLY_TO)
        if reply_to is not None and not (
            len(reply_to) <= MOST_SUBJECT and _INBOX.fullmatch(reply_to)
        ):
            # Anywhere else it would be Fusewire that speaks, with more rights than the producer's.
            raise UnacceptableMessage(
                f"invalid_request: {REPLY_TO} must be an inbox, which begins with _INBOX"
            )
        try:
            told = await self._submit(delivery, tenant)
        except RefusedError as exc:
            await self._answer(
                reply_to, {"error": {"code": exc.code, "message": exc.message, "param": exc.param}}
            )
            # The message may quote the prompt, which may be edge-only; only the producer is told it.
            raise UnacceptableMessage(exc.code) from None
        await self._answer(reply_to, told)

    async def _submit(self, delivery: Delivery, tenant: str) -> dict[str, Any]:
        if not re.match(NAME, tenant):
            raise RefusedError(
                "invalid_request", f"tenant '{tenant[:63]}' must be of a-z, 0-9, '-' and '_'"
            )
        fallback = (
            delivery.headers.get("Nats-Msg-Id")
            or f"{delivery.stream}-{delivery.stored_ns}-{delivery.sequence}"
        )
        prompt = self._intake.read(delivery.data, tenant=tenant, fallback_id=fallback)
        accepted = await self._intake.submit(prompt, source="nats")
        return {
            "id": prompt.fusion_id,
            "custom_id": prompt.custom_id,
            "is_repetition": not accepted.is_new,
        }

    async def _answer(self, reply_to: str | None, told: dict[str, Any]) -> None:
        if reply_to is None:
            return
        try:
            await self._bus.client.publish(reply_to, json.dumps(told).encode())
        except (NatsError, OSError) as exc:
            log.warning("ingest.reply_failed", fault=type(exc).__name__)
