"""What has become of a batch's lines, rendered from their outcomes as it is read: nothing is stored twice."""

import json
from collections.abc import AsyncIterator

from fusewire_ingest.openai import batch_report
from fusewire_ingest.openai.batch_line import RESPONSES_URL
from fusewire_ingest.repository.batches import OVER, Batch
from fusewire_ingest.repository.lines import BatchLines, Kind, LineResult

PAGE = 200
"""Lines that are in memory at once."""
_UNSETTLED = {
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
    """Settled lines, each with its line feed, also while the batch runs.

    Args:
        lines: where they are.
        batch: whose.
        form: OpenAI's, or whole outcomes.
        after: a line's number, or with `by_settled` a settled number (`seq`), behind which to begin.
        limit: the most lines.
        by_settled: in the order in which they settled; else in that of the input, up to the first that has not.
    """
    while limit > 0:
        page = await lines.page(
            batch.batch_id, after=after, limit=min(limit, PAGE), kind="all", by_settled=by_settled
        )
        for one in page:
            if one.seq is None and batch.status not in OVER:
                return
            yield _rendered(batch, one, form)
            after = (one.seq if by_settled else one.line) or 0
        if len(page) < PAGE:
            return
        limit -= len(page)


async def written(
    lines: BatchLines, batch: Batch, kind: Kind, form: batch_report.Form = "openai"
) -> AsyncIterator[bytes]:
    """The output or the error file of a batch that is over, in the order of its input."""
    after = 0
    while page := await lines.page(batch.batch_id, after=after, limit=PAGE, kind=kind):
        for one in page:
            yield _rendered(batch, one, form)
        after = page[-1].line


def _rendered(batch: Batch, one: LineResult, form: batch_report.Form) -> bytes:
    error = one.error
    if one.seq is None:
        code, message = _UNSETTLED["expired" if batch.stop_reason == "expired" else "cancelled"]
        error = {"code": code, "message": message}
    if form == "openai" and batch.endpoint == RESPONSES_URL:
        form = "responses"
    found = batch_report.report(
        one.line, one.custom_id, one.fusion_id, one.outcome, error, form, one.warnings
    )
    return json.dumps({**found, "seq": one.seq}, ensure_ascii=False).encode() + b"\n"
