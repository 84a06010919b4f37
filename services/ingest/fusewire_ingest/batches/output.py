"""Results and output files of batches, rendered from outcomes when they are read."""

import json
from collections.abc import AsyncIterator

from fusewire_ingest.openai import batch_report
from fusewire_ingest.openai.batch_line import RESPONSES_URL
from fusewire_ingest.repository.batches import OVER, Batch
from fusewire_ingest.repository.lines import BatchLines, Kind, LineResult

PAGE = 200
"""Lines that are in memory at once."""
_UNSETTLED_ERRORS = {
    "expired": ("batch_expired", "the completion window was over before its turn; retry the batch"),
    "cancelled": ("batch_cancelled", "the batch was stopped before its turn; resume the batch"),
}


async def results(
    lines: BatchLines,
    batch: Batch,
    *,
    form: batch_report.Form,
    after: int,
    limit: int,
    by_settled: bool,
) -> AsyncIterator[bytes]:
    """Render settled lines of a batch, each with a line feed, also while it runs.

    Args:
        lines: the table.
        batch: the batch.
        form: OpenAI's, or whole outcomes.
        after: begin after this line number, or after this `seq` if `by_settled`.
        limit: the most lines.
        by_settled: in the order in which they settled; otherwise in the order of the input, up to
            the first line that has not settled.
    """
    while limit > 0:
        page = await lines.page(
            batch.batch_id, after=after, limit=min(limit, PAGE), kind="all", by_settled=by_settled
        )
        for line in page:
            if line.seq is None and batch.status not in OVER:
                return
            yield _render(batch, line, form)
            after = (line.seq if by_settled else line.line) or 0
        if len(page) < PAGE:
            return
        limit -= len(page)


async def file_lines(
    lines: BatchLines, batch: Batch, kind: Kind, form: batch_report.Form = "openai"
) -> AsyncIterator[bytes]:
    """Render the output or error file of a batch that is over, in the order of its input."""
    after = 0
    # Not stored: it is the outcomes in another shape (docs/decisions/0023).
    while page := await lines.page(batch.batch_id, after=after, limit=PAGE, kind=kind):
        for line in page:
            yield _render(batch, line, form)
        after = page[-1].line


def _render(batch: Batch, line: LineResult, form: batch_report.Form) -> bytes:
    error = line.error
    if line.seq is None:
        reason = "expired" if batch.stop_reason == "expired" else "cancelled"
        code, message = _UNSETTLED_ERRORS[reason]
        error = {"code": code, "message": message}
    if form == "openai" and batch.endpoint == RESPONSES_URL:
        form = "responses"
    report = batch_report.report(
        line.line, line.custom_id, line.fusion_id, line.outcome, error, form, line.warnings
    )
    return json.dumps({**report, "seq": line.seq}, ensure_ascii=False).encode() + b"\n"
