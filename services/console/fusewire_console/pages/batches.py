"""Batches: how far they are, what they cost, and what of them failed."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire_console.access import Visitor
from fusewire_console.figures.batches import BatchProgress
from fusewire_console.pages import page
from fusewire_console.site import Site
from fusewire_console.views import Rows

PAGE_ROWS = 25
SAMPLE = 2000
"""So many outcomes of a batch are read at most for its errors."""
COLUMNS = """batch_id, name, retry_of, tenant, status, stop_reason, waiting_for, priority, total,
  completed, failed, degraded, created_at, expires_at, finished_at, eta_at, tokens_in, tokens_out,
  cost_usd, n_unpriced, max_cost_usd"""

_OF_BATCH = f"""
WITH sample AS (
  SELECT o.outcome_id, o.status, o.error FROM v_outcome o
  WHERE o.batch_id = :batch_id AND {{o.tenant}} LIMIT {SAMPLE}
)
"""
_FAILURES = f"""{_OF_BATCH}
SELECT status, error, COUNT(*) AS n FROM sample WHERE status IN ('failed', 'expired', 'cancelled')
GROUP BY status, error ORDER BY COUNT(*) DESC, status, error
"""
_CALL_ERRORS = f"""{_OF_BATCH}
SELECT a.model, COALESCE(a.error_code, a.status) AS code, COUNT(*) AS n
FROM sample s JOIN v_answer a ON a.outcome_id = s.outcome_id WHERE a.status IN ('error', 'missing')
GROUP BY a.model, COALESCE(a.error_code, a.status)
ORDER BY COUNT(*) DESC, a.model, COALESCE(a.error_code, a.status)
"""
_READ = f"{_OF_BATCH} SELECT COUNT(*) AS n FROM sample"


async def read_page(site: Site, visitor: Visitor, before: str | None) -> Rows:
    """Read a page of batches, the newest first, and one more if there is one."""
    where, values = "{tenant}", {}
    if before and (position := page.position(before)):
        where += " AND (created_at < :at OR created_at = :at AND batch_id < :id)"
        values = position
    return await site.views.of_tenant(
        visitor,
        f"""SELECT {COLUMNS} FROM v_batch WHERE {where}
        ORDER BY created_at DESC, batch_id DESC LIMIT {PAGE_ROWS + 1}""",
        values,
    )


async def read_batch(site: Site, visitor: Visitor, batch_id: str) -> dict[str, Any]:
    """Read a batch. Raises HTTPException(404) if the visitor has none of this id."""
    rows = await site.views.of_tenant(
        visitor,
        f"SELECT {COLUMNS} FROM v_batch WHERE batch_id = :batch_id AND {{tenant}}",
        {"batch_id": batch_id},
    )
    if not rows:
        raise HTTPException(404)
    return rows[0]


async def read_errors(site: Site, visitor: Visitor, batch_id: str) -> dict[str, Any]:
    """Read what failed, of some of the batch's outcomes."""
    values = {"batch_id": batch_id}
    fetch = site.views.of_tenant
    return {
        "failures": await fetch(visitor, _FAILURES, values),
        "call_errors": await fetch(visitor, _CALL_ERRORS, values),
        "n_read": (await fetch(visitor, _READ, values))[0]["n"],
    }


def routes(site: Site) -> list[Route]:
    """`/batches` and `/batches/{id}`; htmx asks for their live parts."""

    async def show_page(request: Request, visitor: Visitor) -> Response:
        before = request.query_params.get("before")
        rows = await read_page(site, visitor, before)
        more = rows[PAGE_ROWS - 1] if len(rows) > PAGE_ROWS else None
        now = site.clock()
        return page.render(
            site,
            "batches_live.html" if page.is_part(request) else "batches.html",
            visitor,
            batches=[BatchProgress(row, now) for row in rows[:PAGE_ROWS]],
            before=before,
            next_before=more and f"{more['created_at'].isoformat()},{more['batch_id']}",
        )

    async def show_batch(request: Request, visitor: Visitor) -> Response:
        row = await read_batch(site, visitor, request.path_params["batch_id"])
        batch = BatchProgress(row, site.clock())
        if page.is_part(request):
            response = page.render(site, "batch_live.html", visitor, batch=batch)
            if not batch.is_running:
                # Its end changes what the rest of the page says.
                response.headers["hx-refresh"] = "true"
            return response
        errors = await read_errors(site, visitor, row["batch_id"])
        return page.render(site, "batch.html", visitor, batch=batch, sample=SAMPLE, **errors)

    return [
        page.route(site, "/batches", show_page),
        page.route(site, "/batches/{batch_id}", show_batch),
    ]
