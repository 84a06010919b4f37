"""Write planted outcomes to a database, and make their sums."""

import asyncio
import multiprocessing
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import Connection, text

from fusewire.store import summaries
from fusewire.store.engine import Store
from fusewire.testing.planted.rows import COLUMNS, Rows, block_rows, blocks, planted_rows
from fusewire.testing.planted.truth import Truth

_PROCESSES = 2
_MANY_BLOCKS = 20
_last_block: dict[str, Rows] = {}
_CACHE_KIB = 262_144
"""SQLite's page cache: keys are random, so rows come to any page of their indexes."""
_INSERTS = {
    table: f"INSERT INTO {table} ({columns.replace(' ', ', ')})"
    f" VALUES ({', '.join('?' * len(columns.split()))})"
    for table, columns in COLUMNS.items()
}
_BATCHES = text(
    "INSERT INTO batches (batch_id, tenant, status, endpoint, input_file_id, options, priority,"
    " completion_window, total, completed, failed, degraded, tokens_in, tokens_out, cost_usd,"
    " n_unpriced, created_at, touched_at, in_progress_at, expires_at, completed_at)"
    " SELECT batch_id, tenant, 'completed', '/v1/chat/completions', 'file-' || batch_id,"
    """ '{"metadata":{"name":"planted"}}', 'normal', '24h', COUNT(*),"""
    " SUM(CASE WHEN status = 'failed' THEN 0 ELSE 1 END),"
    " SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN is_degraded THEN 1 ELSE 0 END), SUM(tokens_in), SUM(tokens_out),"
    " COALESCE(SUM(cost_usd), 0), SUM(CASE WHEN cost_usd IS NULL THEN 1 ELSE 0 END),"
    " MIN(submitted_at), MAX(finished_at), MIN(submitted_at), MAX(finished_at), MAX(finished_at)"
    " FROM outcomes WHERE batch_id IS NOT NULL GROUP BY batch_id, tenant ON CONFLICT DO NOTHING"
)


async def fill(store: Store, truth: Truth, count: int, seed: int) -> None:
    """Write the rows of `planted_rows`, the batches that they name, and the sums of each day.

    A block is a transaction, and so is a day of sums. Above some 100,000 prompts, the store has to
    be a patient one.
    """
    if store.is_sqlite:
        async for rows in _blocks(truth, count, seed):
            await store.run(partial(_insert, rows), write=True)
    else:
        url = store.url.set(drivername="postgresql")
        connection = await asyncpg.connect(url.render_as_string(hide_password=False))
        try:
            async for rows in _blocks(truth, count, seed):
                await _copy(connection, rows)
        finally:
            await connection.close()
    await store.run(lambda connection: connection.execute(_BATCHES), write=True)
    for day in await store.run(summaries.days, write=False):
        await store.run(partial(summaries.rebuild_day, day=day), write=True)


async def _blocks(truth: Truth, count: int, seed: int) -> AsyncIterator[Rows]:
    """Make the rows of many blocks in processes of their own, while others are written."""
    all_numbers = blocks(count)
    if len(all_numbers) == 1:
        yield _single_block(truth, count, seed)
        return
    if len(all_numbers) < _MANY_BLOCKS:
        for rows in planted_rows(truth, count, seed):
            yield rows
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, context) as pool:
        pending: deque[Future[Rows]] = deque()
        for numbers in all_numbers:
            pending.append(pool.submit(block_rows, truth, count, seed, numbers))
            # No more, as memory shall not grow with the number of prompts.
            if len(pending) > 2 * _PROCESSES:
                yield await asyncio.wrap_future(pending.popleft())
        while pending:
            yield await asyncio.wrap_future(pending.popleft())


def _single_block(truth: Truth, count: int, seed: int) -> Rows:
    """Make the rows of one block, or take those of the last call: tests of a module want the same.

    Nobody changes them.
    """
    key = repr((truth, count, seed))
    if key not in _last_block:
        _last_block.clear()
        _last_block[key] = block_rows(truth, count, seed, range(count))
    return _last_block[key]


def _insert(rows: Rows, connection: Connection) -> None:
    connection.exec_driver_sql(f"PRAGMA cache_size = -{_CACHE_KIB}")
    for table, records in rows.items():
        if records:
            connection.exec_driver_sql(_INSERTS[table], [_as_text(record) for record in records])


def _as_text(record: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with its times as SQLAlchemy writes them to SQLite."""
    return tuple(
        [
            value.isoformat(" ", "microseconds")[:26] if type(value) is datetime else value
            for value in record
        ]
    )


async def _copy(connection: Any, rows: Rows) -> None:
    async with connection.transaction():
        for table, records in rows.items():
            columns = COLUMNS[table].split()
            await connection.copy_records_to_table(table, records=records, columns=columns)
