"""Lines of batches in SQL: held, then flying, then ok or failed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, bindparam, case, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.engine import Store
from fusewire.store.tables import batch_lines, outcomes
from fusewire_ingest.fair_queue import PendingLine
from fusewire_ingest.openai import batch_report

Only = Literal["retryable", "all"]
Kind = Literal["all", "output", "error"]

ANSWERED = ("fused", "voted", "single")
SETTLE_MOST = 500

_L = batch_lines.c
_ADD = {
    "sqlite": sqlite.insert(batch_lines).on_conflict_do_nothing(
        index_elements=["batch_id", "line"]
    ),
    "postgresql": postgresql.insert(batch_lines).on_conflict_do_nothing(
        index_elements=["batch_id", "line"]
    ),
}
_AT = (_L.batch_id == bindparam("of"), _L.line == bindparam("at"))
_FLY = update(batch_lines).where(*_AT).values(state="flying", fusion_id=bindparam("fusion"))
_SETTLE = (
    update(batch_lines)
    .where(*_AT)
    .values(
        state=bindparam("became"),
        settled=bindparam("number"),
        is_retryable=bindparam("retryable"),
        error=bindparam("why"),
    )
)
_DUE = (
    select(
        _L.line,
        outcomes.c.status,
        outcomes.c.is_degraded,
        outcomes.c.tokens_in,
        outcomes.c.tokens_out,
        outcomes.c.tokens_cached,
        outcomes.c.tokens_thought,
        outcomes.c.cost_usd,
        case((outcomes.c.status.in_(ANSWERED), None), else_=outcomes.c.body).label("body"),
    )
    .join(outcomes, outcomes.c.fusion_id == _L.fusion_id)
    .where(_L.batch_id == bindparam("of"), _L.state == "flying")
    .order_by(outcomes.c.finished_at, _L.line)
    .limit(SETTLE_MOST)
)
_WAITING = (
    select(_L.line, _L.byte_length)
    .where(_L.batch_id == bindparam("of"), _L.state == "held")
    .order_by(_L.line)
    .limit(bindparam("most"))
)


@dataclass(frozen=True)
class HeldLine:
    """A line that has not been submitted, and where it stands in the input. `warnings` is a JSON list."""

    line: int
    custom_id: str
    byte_offset: int
    byte_length: int
    warnings: str | None = None


@dataclass(frozen=True)
class SettledLines:
    """What lines have come to."""

    answered: int = 0
    failed: int = 0
    degraded: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_thought: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True)
class LineResult:
    """A line and its outcome; `seq` is its place among those that have settled, from 1."""

    line: int
    custom_id: str
    state: str
    seq: int | None
    fusion_id: str | None
    outcome: dict[str, Any] | None
    error: dict[str, Any] | None
    warnings: tuple[str, ...] = ()


class BatchLines:
    """The `batch_lines` table. Its batch's row is locked by whoever changes lines that are held or flying."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, batch_id: str, lines: Sequence[HeldLine]) -> dict[str, int]:
        """Store some lines, those that are there already as well.

        Returns:
            Lines that have custom_ids of these, and are others: then nothing was stored.
        """
        own = {one.custom_id: one.line for one in lines}
        query = select(_L.custom_id, _L.line).where(
            _L.batch_id == batch_id, _L.custom_id.in_(list(own))
        )
        async with self._store.write() as connection:
            known = await connection.execute(query)
            taken = {row.custom_id: row.line for row in known if own[row.custom_id] != row.line}
            if not taken:
                rows = [{"batch_id": batch_id, "state": "held", **vars(one)} for one in lines]
                await connection.execute(_ADD[connection.dialect.name], rows)
        return taken

    async def drop(self, batch_id: str) -> None:
        """Remove all lines of a batch whose input was refused."""
        async with self._store.write() as connection:
            await connection.execute(batch_lines.delete().where(_L.batch_id == batch_id))

    async def copy_in(
        self, connection: AsyncConnection, source: str, target: str, only: Only, *, with_held: bool
    ) -> int:
        """Give a batch the failed lines of another; returns how many.

        Args:
            connection: of a transaction.
            source: the batch that had them.
            target: the batch that gets them.
            only: which of the failed.
            with_held: also those that never were submitted.
        """
        failed: ColumnElement[bool] = _L.state == "failed"
        if only == "retryable":
            failed &= _L.is_retryable.is_(True)
        wanted = failed | (_L.state == "held") if with_held else failed
        columns = (_L.line, _L.custom_id, _L.byte_offset, _L.byte_length, _L.warnings)
        rows = select(literal(target), literal("held"), *columns).where(
            _L.batch_id == source, wanted
        )
        names = ["batch_id", "state", *(column.name for column in columns)]
        await connection.execute(insert(batch_lines).from_select(names, rows))
        counted = select(func.count()).select_from(batch_lines).where(_L.batch_id == target)
        return int((await connection.execute(counted)).scalar_one())

    async def in_flight(self) -> dict[str, int]:
        """How many lines of each batch are in flight."""
        query = select(_L.batch_id, func.count()).where(_L.state == "flying").group_by(_L.batch_id)
        async with self._store.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def waiting(self, batch_ids: Iterable[str], most: int) -> list[PendingLine]:
        """The first held lines of some batches, in the order of the batches."""
        found: list[PendingLine] = []
        async with self._store.read() as connection:
            for batch_id in batch_ids:
                if len(found) >= most:
                    break
                rows = await connection.execute(
                    _WAITING, {"of": batch_id, "most": most - len(found)}
                )
                found += [PendingLine(batch_id, row.line, row.byte_length) for row in rows]
        return found

    async def counts_in(self, connection: AsyncConnection, batch_id: str) -> tuple[int, int]:
        """How many lines are held, 0 or 1 for more, and how many in flight."""
        held = select(_L.line).where(_L.batch_id == batch_id, _L.state == "held").limit(1)
        flying = (
            select(func.count())
            .select_from(batch_lines)
            .where(_L.batch_id == batch_id, _L.state == "flying")
        )
        is_held = (await connection.execute(held)).first() is not None
        return int(is_held), int((await connection.execute(flying)).scalar_one())

    async def held_in(
        self, connection: AsyncConnection, batch_id: str, numbers: Sequence[int]
    ) -> list[HeldLine]:
        """Those of some lines that are still held."""
        query = (
            select(_L.line, _L.custom_id, _L.byte_offset, _L.byte_length)
            .where(_L.batch_id == batch_id, _L.state == "held", _L.line.in_(numbers))
            .order_by(_L.line)
        )
        return [HeldLine(*row) for row in await connection.execute(query)]

    async def fly_in(
        self, connection: AsyncConnection, batch_id: str, flown: Sequence[tuple[int, str]]
    ) -> None:
        """These lines were submitted, as these fusions."""
        if flown:
            await connection.execute(
                _FLY, [{"of": batch_id, "at": line, "fusion": f} for line, f in flown]
            )

    async def fail_in(
        self,
        connection: AsyncConnection,
        batch_id: str,
        failed: Sequence[tuple[int, dict[str, Any]]],
        settled: int,
    ) -> SettledLines:
        """These lines could not be submitted, for these reasons; `settled` lines have settled before."""
        rows = [
            {
                "of": batch_id,
                "at": line,
                "became": "failed",
                "number": number,
                "retryable": False,
                "why": json.dumps(e),
            }
            for number, (line, e) in enumerate(failed, settled + 1)
        ]
        if rows:
            await connection.execute(_SETTLE, rows)
        return SettledLines(failed=len(rows))

    async def is_due(self, batch_id: str) -> bool:
        """Whether a flying line has its outcome."""
        async with self._store.read() as connection:
            return (await connection.execute(_DUE.limit(1), {"of": batch_id})).first() is not None

    async def settle_in(
        self, connection: AsyncConnection, batch_id: str, settled: int
    ) -> SettledLines:
        """Note what flying lines have come to, at most SETTLE_MOST; `settled` lines have settled before."""
        due = (await connection.execute(_DUE, {"of": batch_id})).all()
        rows = []
        for number, row in enumerate(due, settled + 1):
            retryable = (
                None if row.body is None else batch_report.is_retryable(json.loads(row.body))
            )
            became = "ok" if row.body is None else "failed"
            told = {"of": batch_id, "at": row.line, "became": became, "number": number}
            rows.append({**told, "retryable": retryable, "why": None})
        if rows:
            await connection.execute(_SETTLE, rows)
        answered = sum(row.body is None for row in due)
        return SettledLines(
            answered=answered,
            failed=len(due) - answered,
            degraded=sum(bool(row.is_degraded) for row in due),
            tokens_in=sum(row.tokens_in or 0 for row in due),
            tokens_out=sum(row.tokens_out or 0 for row in due),
            tokens_cached=sum(row.tokens_cached or 0 for row in due),
            tokens_thought=sum(row.tokens_thought or 0 for row in due),
            cost_usd=sum(row.cost_usd or 0.0 for row in due),
            unpriced=sum(row.cost_usd is None for row in due),
        )

    async def flying(self, batch_id: str) -> list[str]:
        """The fusions of a batch that are in flight."""
        query = select(_L.fusion_id).where(_L.batch_id == batch_id, _L.state == "flying")
        async with self._store.read() as connection:
            return [fusion for fusion in (await connection.execute(query)).scalars() if fusion]

    async def page(
        self, batch_id: str, *, after: int, limit: int, kind: Kind, by_settled: bool = False
    ) -> list[LineResult]:
        """Some lines with their outcomes.

        Args:
            batch_id: whose.
            after: a line's number, or a settled number, behind which to begin.
            limit: the most lines.
            kind: `output`: those that were answered; `error`: all others.
            by_settled: only what has settled, and in that order.
        """
        place = _L.settled if by_settled else _L.line
        query = (
            select(
                _L.line,
                _L.custom_id,
                _L.state,
                _L.settled,
                _L.fusion_id,
                _L.error,
                _L.warnings,
                outcomes.c.body,
            )
            .outerjoin(outcomes, (outcomes.c.fusion_id == _L.fusion_id) & _L.settled.is_not(None))
            .where(_L.batch_id == batch_id, place > after)
            .order_by(place)
            .limit(limit)
        )
        if kind != "all":
            query = query.where(_L.state == "ok" if kind == "output" else _L.state != "ok")
        async with self._store.read() as connection:
            return [
                LineResult(
                    row.line,
                    row.custom_id,
                    row.state,
                    row.settled,
                    row.fusion_id,
                    json.loads(row.body) if row.body else None,
                    json.loads(row.error) if row.error else None,
                    tuple(json.loads(row.warnings)) if row.warnings else (),
                )
                for row in await connection.execute(query)
            ]
