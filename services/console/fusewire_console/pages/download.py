"""The rows of a statement as a file, which is sent while they are read."""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, Mapping

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fusewire.store.analyst import Analyst, QueryError
from fusewire.store.analyst.writers import writer

log = structlog.get_logger(__name__)

FORMS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
"""The media type of each form."""
MOST_ROWS = 1_000_000
PIECE_BYTES = 256 * 1024
"""Of a piece: what fails before the first is full is told as a page."""


class Download(StreamingResponse):
    """A file of rows, to be started before it is returned.

    Args:
        analyst: the database.
        sql: the statement.
        values: the values of its parameters.
        form: csv or parquet.
    """

    def __init__(self, analyst: Analyst, sql: str, values: Mapping[str, object], form: str) -> None:
        self._pieces = _pieces(analyst, sql, values, form)
        self._first = b""
        name = f'attachment; filename="rows.{form}"'
        super().__init__(self._all(), media_type=FORMS[form], headers={"content-disposition": name})

    async def start(self) -> None:
        """Run the statement as far as its first rows. Raises QueryError."""
        try:
            self._first = await anext(self._pieces)
        except BaseException:
            await self._pieces.aclose()
            raise

    async def _all(self) -> AsyncGenerator[bytes, None]:
        yield self._first
        async for piece in self._pieces:
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. The statement ends when the visitor leaves."""
        async with contextlib.aclosing(self._pieces):
            try:
                await super().__call__(scope, receive, send)
            except QueryError as exc:
                # The response is left incomplete, so that nobody takes it for the whole file.
                log.warning("console.download_broken", fault=type(exc).__name__)


async def _pieces(
    analyst: Analyst, sql: str, values: Mapping[str, object], form: str
) -> AsyncGenerator[bytes, None]:
    """The bytes of a file, from its first rows to its end."""
    buffer = io.BytesIO()
    async with analyst, analyst.stream(sql, values) as result:
        # In a thread, as columns of Parquet take a while and others wait meanwhile.
        out = await asyncio.to_thread(writer, form, buffer, result.columns)
        n_rows = 0
        async for chunk in result:
            rows = chunk[: MOST_ROWS - n_rows]
            await asyncio.to_thread(out.write, rows)
            n_rows += len(rows)
            if buffer.tell() >= PIECE_BYTES:
                yield _take(buffer)
            if n_rows == MOST_ROWS:
                break
    await asyncio.to_thread(out.finish)
    yield _take(buffer)


def _take(buffer: io.BytesIO) -> bytes:
    """What was written since it was last taken."""
    piece = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return piece
