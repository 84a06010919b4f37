"""The intake on the bus: producers that use NATS publish prompts to `fw.in.<tenant>`."""

import json
import re
from typing import Any

import structlog
from nats.errors import Error as NatsError

from fusewire.accounts import tenant_inbox
from fusewire.bus import Bus, Delivery
from fusewire.contracts import NAME
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import UnacceptableMessage
from fusewire_ingest.admission.admit import RefusedError
from fusewire_ingest.intake import Intake

log = structlog.get_logger(__name__)

REPLY_TO = "Fw-Reply-To"
"""The header with the subject at which a producer wants the reply to its prompt."""
_INBOX = re.compile(r"_INBOX[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)+", re.ASCII)
MOST_SUBJECT = 256


class BusSubscriber:
    """Handles submissions from FW_IN, each a Submission in JSON.

    A refused one goes to FW_DEAD with the reason.

    Args:
        intake: commits them.
        bus: replies.
        by_tenant: whether each tenant has its own user of NATS. That user hears the inboxes of its
            tenant alone, so a reply goes to no other (docs/decisions/0055).
    """

    def __init__(self, intake: Intake, bus: Bus, *, by_tenant: bool) -> None:
        self._intake = intake
        self._bus = bus
        self._by_tenant = by_tenant

    async def handle(self, delivery: Delivery) -> None:
        """Commit one submission, then reply.

        A submission without a custom_id gets its Nats-Msg-Id, or its position in the stream. The
        reply is `{"id", "custom_id", "is_repetition"}` or
        `{"error": {"code", "message", "param"}}`. It is sent once, on core NATS: a producer that
        receives none sends its prompt again.

        Raises:
            UnacceptableMessage: the submission was refused.
            Transient: it could not be committed.
        """
        tenant = delivery.subject.rpartition(".")[2]
        reply_to = delivery.headers.get(REPLY_TO)
        if reply_to is not None:
            self._check_inbox(reply_to, tenant)
        try:
            reply = await self._submit(delivery, tenant)
        except RefusedError as exc:
            await self._reply(
                reply_to, {"error": {"code": exc.code, "message": exc.message, "param": exc.param}}
            )
            # The message may quote the prompt, which may be edge-only: only the producer gets it
            # (docs/decisions/0007).
            raise UnacceptableMessage(exc.code) from None
        reach(CrashPoint.INTAKE_COMMITTED)
        await self._reply(reply_to, reply)
        reach(CrashPoint.INTAKE_REPLIED)

    def _check_inbox(self, reply_to: str, tenant: str) -> None:
        """Refuse what is no inbox: there Fusewire may publish, and the producer may not."""
        if not _is_inbox(reply_to):
            raise UnacceptableMessage(
                f"invalid_request: {REPLY_TO} must be an inbox, which begins with _INBOX"
            )
        if self._by_tenant and not reply_to.startswith(f"{tenant_inbox(tenant)}."):
            raise UnacceptableMessage(
                f"invalid_request: {REPLY_TO} must be an inbox of its tenant: give the client the "
                f"inbox prefix {tenant_inbox(tenant)}"
            )

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

    async def _reply(self, reply_to: str | None, reply: dict[str, Any]) -> None:
        if reply_to is None:
            return
        try:
            await self._bus.client.publish(reply_to, json.dumps(reply).encode())
        except (NatsError, OSError) as exc:
            log.warning("ingest.reply_failed", fault=type(exc).__name__)


def _is_inbox(subject: str) -> bool:
    return len(subject) <= MOST_SUBJECT and _INBOX.fullmatch(subject) is not None
