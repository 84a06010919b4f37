"""Lines of batches in SQL. The states of a line: `held`, then `flying`, then `ok` or `failed`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.contracts import ANSWERED
from fusewire.errors import TextsDeletedError
from fusewire.store.engine import Store
from fusewire.store.tables import batch_lines, outcomes
from fusewire_ingest.fair_queue import PendingLine
from fusewire_ingest.openai import batch_report

Only = Literal["retryable", "all"]
Kind = Literal["all", "output", "error"]

"""Statuses of outcomes with an answer."""
SETTLE_MOST = 500
"""The most lines that one transaction settles."""

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
_HELD = (
    select(_L.line, _L.byte_length)
    .where(_L.batch_id == bindparam("of"), _L.state == "held")
    .order_by(_L.line)
    .limit(bindparam("most"))
)


@dataclass(frozen=True)
class HeldLine:
    """A line that was not submitted yet, and its place in the input. `warnings` is a JSON list."""

    line: int
    custom_id: str
    byte_offset: int
    byte_length: int
    warnings: str | None = None


@dataclass(frozen=True)
class SettledLines:
    """Sums over lines that have settled: how many, what they used and cost."""

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
    """A line and its outcome; `seq` is its place in the order in which lines settled, from 1."""

    line: int
    custom_id: str
    state: str
    seq: int | None
    fusion_id: str | None
    outcome: dict[str, Any] | None
    error: dict[str, Any] | None
    warnings: tuple[str, ...] = ()


class BatchLines:
    """The `batch_lines` table.

    A transaction that changes lines that are held or flying must first lock their batch's row.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, batch_id: str, lines: Sequence[HeldLine]) -> dict[str, int]:
        """Store lines of a batch; lines that are stored already do not count as errors.

        Returns:
            By custom_id, other lines that have it already. If there are any, nothing was stored.
        """
        numbers = {line.custom_id: line.line for line in lines}
        query = select(_L.custom_id, _L.line).where(
            _L.batch_id == batch_id, _L.custom_id.in_(list(numbers))
        )
        async with self._store.write() as connection:
            stored_rows = await connection.execute(query)
            conflicts = {
                row.custom_id: row.line for row in stored_rows if numbers[row.custom_id] != row.line
            }
            if not conflicts:
                rows = [{"batch_id": batch_id, "state": "held", **vars(line)} for line in lines]
                await connection.execute(_ADD[connection.dialect.name], rows)
        return conflicts

    async def drop(self, batch_id: str) -> None:
        """Delete all lines of a batch whose input was refused."""
        async with self._store.write() as connection:
            await connection.execute(batch_lines.delete().where(_L.batch_id == batch_id))

    def copy_in(
        self, connection: Connection, source: str, target: str, only: Only, *, with_held: bool
    ) -> int:
        """Copy the failed lines of a batch to another, as held; returns how many.

        Args:
            connection: the connection of the transaction.
            source: the batch that has them.
            target: the batch that gets them.
            only: all failed lines, or those with errors that may be gone next time.
            with_held: also the lines that were never submitted.
        """
        condition: ColumnElement[bool] = _L.state == "failed"
        if only == "retryable":
            condition &= _L.is_retryable.is_(True)
        if with_held:
            condition |= _L.state == "held"
        columns = (_L.line, _L.custom_id, _L.byte_offset, _L.byte_length, _L.warnings)
        rows = select(literal(target), literal("held"), *columns).where(
            _L.batch_id == source, condition
        )
        names = ["batch_id", "state", *(column.name for column in columns)]
        connection.execute(insert(batch_lines).from_select(names, rows))
        count = select(func.count()).select_from(batch_lines).where(_L.batch_id == target)
        return int(connection.execute(count).scalar_one())

    async def in_flight(self) -> dict[str, int]:
        """Count the lines of each batch that are in flight."""
        query = select(_L.batch_id, func.count()).where(_L.state == "flying").group_by(_L.batch_id)
        rows = await self._store.run(
            lambda connection: connection.execute(query).all(), write=False
        )
        return {row[0]: row[1] for row in rows}

    async def find_held(self, batch_ids: Iterable[str], most: int) -> list[PendingLine]:
        """List the first held lines of some batches, in the order of the batches."""

        def find(connection: Connection) -> list[PendingLine]:
            lines: list[PendingLine] = []
            for batch_id in batch_ids:
                if len(lines) >= most:
                    break
                rows = connection.execute(_HELD, {"of": batch_id, "most": most - len(lines)})
                lines += [PendingLine(batch_id, row.line, row.byte_length) for row in rows]
            return lines

        return await self._store.run(find, write=False)

    def counts_in(self, connection: Connection, batch_id: str) -> tuple[bool, int]:
        """Whether any line of a batch is held, and how many are in flight."""
        first_held = select(_L.line).where(_L.batch_id == batch_id, _L.state == "held").limit(1)
        flying_count = (
            select(func.count())
            .select_from(batch_lines)
            .where(_L.batch_id == batch_id, _L.state == "flying")
        )
        has_held = connection.execute(first_held).first() is not None
        return has_held, int(connection.execute(flying_count).scalar_one())

    def held_in(
        self, connection: Connection, batch_id: str, numbers: Sequence[int]
    ) -> list[HeldLine]:
        """Read those of some lines that are still held."""
        query = (
            select(_L.line, _L.custom_id, _L.byte_offset, _L.byte_length)
            .where(_L.batch_id == batch_id, _L.state == "held", _L.line.in_(numbers))
            .order_by(_L.line)
        )
        return [HeldLine(*row) for row in connection.execute(query)]

    def fly_in(
        self, connection: Connection, batch_id: str, submitted_lines: Sequence[tuple[int, str]]
    ) -> None:
        """Mark held lines as flying, each with the id of its fusion."""
        rows = [{"of": batch_id, "at": line, "fusion": key} for line, key in submitted_lines]
        if rows:
            connection.execute(_FLY, rows)

    def fail_in(
        self,
        connection: Connection,
        batch_id: str,
        errors: Sequence[tuple[int, dict[str, Any]]],
        settled: int,
    ) -> SettledLines:
        """Note the errors of lines that could not be submitted.

        Args:
            connection: the connection of the transaction.
            batch_id: the batch.
            errors: lines with their errors.
            settled: how many lines of the batch have settled before.
        """
        rows = [
            {
                "of": batch_id,
                "at": line,
                "became": "failed",
                "number": number,
                "retryable": False,
                "why": json.dumps(error),
            }
            for number, (line, error) in enumerate(errors, settled + 1)
        ]
        if rows:
            connection.execute(_SETTLE, rows)
        return SettledLines(failed=len(rows))

    async def is_due(self, batch_id: str) -> bool:
        """Whether a flying line of a batch has its outcome."""
        query = _DUE.limit(1)
        return await self._store.run(
            lambda connection: connection.execute(query, {"of": batch_id}).first() is not None,
            write=False,
        )

    def settle_in(self, connection: Connection, batch_id: str, settled: int) -> SettledLines:
        """Settle flying lines that have an outcome, at most SETTLE_MOST.

        Args:
            connection: the connection of the transaction.
            batch_id: the batch.
            settled: how many lines of the batch have settled before.
        """
        due = connection.execute(_DUE, {"of": batch_id}).all()
        rows = []
        for number, row in enumerate(due, settled + 1):
            # _DUE reads the body of those outcomes only that have no answer.
            state, is_retryable = "ok", None
            if row.body is not None:
                state, is_retryable = "failed", batch_report.is_retryable(json.loads(row.body))
            rows.append(
                {
                    "of": batch_id,
                    "at": row.line,
                    "became": state,
                    "number": number,
                    "retryable": is_retryable,
                    "why": None,
                }
            )
        if rows:
            connection.execute(_SETTLE, rows)
        n_answered = sum(row.body is None for row in due)
        return SettledLines(
            answered=n_answered,
            failed=len(due) - n_answered,
            degraded=sum(bool(row.is_degraded) for row in due),
            tokens_in=sum(row.tokens_in or 0 for row in due),
            tokens_out=sum(row.tokens_out or 0 for row in due),
            tokens_cached=sum(row.tokens_cached or 0 for row in due),
            tokens_thought=sum(row.tokens_thought or 0 for row in due),
            cost_usd=sum(row.cost_usd or 0.0 for row in due),
            unpriced=sum(row.cost_usd is None for row in due),
        )

    async def flying_ids(self, batch_id: str) -> list[str]:
        """List the ids of a batch's fusions that are in flight."""
        query = select(_L.fusion_id).where(_L.batch_id == batch_id, _L.state == "flying")
        async with self._store.read() as connection:
            return [key for key in (await connection.execute(query)).scalars() if key]

    async def page(
        self, batch_id: str, *, after: int, limit: int, kind: Kind, by_settled: bool = False
    ) -> list[LineResult]:
        """Read lines with their outcomes.

        Args:
            batch_id: the batch.
            after: begin after this line number, or `seq` if `by_settled`.
            limit: the most lines.
            kind: `output` for lines with an answer, `error` for all others.
            by_settled: only lines that have settled, in the order in which they did.
        """
        sort_column = _L.settled if by_settled else _L.line
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
                outcomes.c.texts_deleted_at,
            )
            .outerjoin(outcomes, (outcomes.c.fusion_id == _L.fusion_id) & _L.settled.is_not(None))
            .where(_L.batch_id == batch_id, sort_column > after)
            .order_by(sort_column)
            .limit(limit)
        )
        if kind == "output":
            query = query.where(_L.state == "ok")
        elif kind == "error":
            query = query.where(_L.state != "ok")
        async with self._store.read() as connection:
            return [_result(row) for row in await connection.execute(query)]


def _result(row: Any) -> LineResult:
    error = json.loads(row.error) if row.error else None
    if row.texts_deleted_at:
        error = {"code": "texts_deleted", "message": str(TextsDeletedError(row.fusion_id))}
    return LineResult(
        row.line,
        row.custom_id,
        row.state,
        row.settled,
        row.fusion_id,
        json.loads(row.body) if row.body else None,
        error,
        tuple(json.loads(row.warnings)) if row.warnings else (),
    )
