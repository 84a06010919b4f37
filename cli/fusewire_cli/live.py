"""`fusewire config check --live`: one small question to each hosted model, as a member and as a judge."""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.settings import RemoteModel, Settings
from fusewire_cli.screen import EXIT_SOME_FAILED, RowFormat, rows
from fusewire_worker_remote.dialects import MemoryDialects
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger import LedgerEntry

ASKED = "Is copper a metal? Answer yes or no."
VERDICT = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "winner": {"type": "string", "enum": ["AA", "BB"]},
    },
    "required": ["reason", "winner"],
    "additionalProperties": False,
}
JUDGED = (
    "Request: Is copper a metal?\nAA: Yes, it is.\nBB: No.\nWhich answer is right? Answer with JSON only: "
    '{"reason": one short sentence, "winner": "AA" or "BB"}.'
)
ROLES: dict[str, tuple[str, Sampling]] = {
    "member": (ASKED, Sampling()),
    "judge": (JUDGED, Sampling(response_schema=VERDICT)),
}
WITHIN_S = 120
COLUMNS = ("model", "as", "result", "cost_usd", "found")


@dataclass
class _NoLedger:
    """A ledger for calls that are made once, and nowhere noted."""

    revision: int = 0

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:  # noqa: ARG002 - the signature is the ledger's
        return None, 0

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:  # noqa: ARG002 - the signature is the protocol's
        return revision + 1


def check(config: Settings) -> int:
    """Ask, print what was found, and return the exit code: 3 where a model gave no answer."""
    # What calls log is told in the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found = asyncio.run(_asked(config))
    rows(COLUMNS, [row for row, _ in found], RowFormat.table)
    return 0 if all(is_fine for _, is_fine in found) else EXIT_SOME_FAILED


async def _asked(config: Settings) -> list[tuple[tuple[str, ...], bool]]:
    models = {
        name: model
        for name, model in sorted(config.models.items())
        if isinstance(model, RemoteModel)
    }
    dialects = MemoryDialects()
    generate = RemoteGenerate(
        models,
        _NoLedger(),
        dialects,
        clock=lambda: datetime.now(UTC),
        sleep=asyncio.sleep,
        rng=random.random,
        worker_id="config-check",
    )
    try:
        return [
            _row(name, role, await generate.generate(_task(name, role)), dialects, model)
            for name, model in models.items()
            for role in ROLES
        ]
    finally:
        await generate.aclose()


def _task(model: str, role: str) -> Task:
    content, sampling = ROLES[role]
    return Task(
        task_id=f"config-check-{model}-{role}",
        fusion_id="config-check",
        round=0,
        call=role,
        kind="answer" if role == "member" else "verdict",
        model=model,
        tier="remote",
        tenant="default",
        messages=(Message(role="user", content=content),),
        sampling=sampling,
        residency="any",
        priority="high",
        deadline_at=datetime.now(UTC) + timedelta(seconds=WITHIN_S),
    )


def _row(
    name: str, role: str, answer: Candidate, dialects: MemoryDialects, model: RemoteModel
) -> tuple[tuple[str, ...], bool]:
    cost = "unknown" if answer.cost_usd is None else f"{answer.cost_usd:.6f}"
    result = "ok" if answer.error is None else f"{answer.error.code}: {answer.error.message}"
    return (name, role, result, cost, dialects.of(model).describe()), answer.ok
