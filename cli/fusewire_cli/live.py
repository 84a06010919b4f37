"""`fusewire config check --live`: ask each hosted model one small question.

Each is asked as a member and as a judge.
"""

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

MEMBER_PROMPT = "Is copper a metal? Answer yes or no."
VERDICT = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "winner": {"type": "string", "enum": ["AA", "BB"]},
    },
    "required": ["reason", "winner"],
    "additionalProperties": False,
}
JUDGE_PROMPT = (
    "Request: Is copper a metal?\nAA: Yes, it is.\nBB: No.\n"
    "Which answer is right? Answer with JSON only: "
    '{"reason": one short sentence, "winner": "AA" or "BB"}.'
)
ROLES: dict[str, tuple[str, Sampling]] = {
    "member": (MEMBER_PROMPT, Sampling()),
    "judge": (JUDGE_PROMPT, Sampling(response_schema=VERDICT)),
}
DEADLINE_S = 120
COLUMNS = ("model", "as", "result", "cost_usd", "found")


@dataclass
class _NoLedger:
    """A ledger that stores nothing: each call is made once."""

    revision: int = 0

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:  # noqa: ARG002 - the signature is the ledger's
        return None, 0

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:  # noqa: ARG002 - the signature is the protocol's
        return revision + 1


def check(config: Settings) -> int:
    """Ask, and print the results. Returns the exit code: 3 if a model gave no answer."""
    # The table says what the calls would log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    results = asyncio.run(_ask_models(config))
    rows(COLUMNS, [row for row, _ in results], RowFormat.table)
    return 0 if all(is_ok for _, is_ok in results) else EXIT_SOME_FAILED


async def _ask_models(config: Settings) -> list[tuple[tuple[str, ...], bool]]:
    """Ask each hosted model in each role. Returns rows, and whether each is an answer."""
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
    results = []
    try:
        for name, model in models.items():
            for role in ROLES:
                candidate = await generate.generate(_task(name, role))
                results.append(_row(name, role, candidate, dialects, model))
        return results
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
        deadline_at=datetime.now(UTC) + timedelta(seconds=DEADLINE_S),
    )


def _row(
    name: str, role: str, candidate: Candidate, dialects: MemoryDialects, model: RemoteModel
) -> tuple[tuple[str, ...], bool]:
    cost = "unknown" if candidate.cost_usd is None else f"{candidate.cost_usd:.6f}"
    result = (
        "ok" if candidate.error is None else f"{candidate.error.code}: {candidate.error.message}"
    )
    return (name, role, result, cost, dialects.of(model).describe()), candidate.ok
