"""The view of batches."""

from fusewire.store.views.view import View, integer, real, text, timestamp


def _option(name: str) -> str:
    return f"b.options::json #>> '{{metadata,{name}}}'"


_DONE = "(b.completed + b.failed)"
_IS_MOVING = f"b.status = 'in_progress' AND {_DONE} > 0"

V_BATCH = View(
    "v_batch",
    "One row per batch.",
    (
        text("batch_id", "the batch's id", "b.batch_id"),
        text(
            "name",
            "`name` in its metadata",
            "json_extract(b.options, '$.metadata.name')",
            _option("name"),
        ),
        text(
            "retry_of",
            "the batch it retries",
            "json_extract(b.options, '$.metadata.retry_of')",
            _option("retry_of"),
        ),
        text("tenant", "who submitted it", "b.tenant"),
        text(
            "status",
            "validating, in_progress, finalizing, completed, failed, expired, cancel…",
            "b.status",
        ),
        text(
            "stop_reason",
            "why it was stopped: request, interrupted, budget, expired",
            "b.stop_reason",
        ),
        text("waiting_for", "what holds it up, where something does", "b.waiting_for"),
        text("priority", "high, normal or low", "b.priority"),
        integer("total", "lines", "b.total"),
        integer("completed", "lines with an answer", "b.completed"),
        integer("failed", "lines without one, of those that ended", "b.failed"),
        integer("degraded", "lines whose outcome is degraded", "b.degraded"),
        timestamp("created_at", "when it was submitted (UTC)", "b.created_at"),
        timestamp("expires_at", "when it is stopped at the latest (UTC)", "b.expires_at"),
        timestamp(
            "finished_at",
            "when it ended (UTC)",
            "COALESCE(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)",
        ),
        timestamp(
            "eta_at",
            "when it will be done if it goes on as it went so far (UTC); NULL unless it runs",
            f"CASE WHEN {_IS_MOVING}"
            " THEN strftime('%Y-%m-%d %H:%M:%f000', julianday(b.in_progress_at)"
            f" + (julianday('now') - julianday(b.in_progress_at)) * b.total / {_DONE}) END",
            f"CASE WHEN {_IS_MOVING} THEN b.in_progress_at"
            f" + (now() - b.in_progress_at) * (b.total / CAST({_DONE} AS double precision)) END",
        ),
        integer(
            "tokens_in",
            "prompt tokens of members and judge, as far as they were counted",
            "b.tokens_in",
        ),
        integer("tokens_out", "completion tokens of members and judge, likewise", "b.tokens_out"),
        real(
            "cost_usd",
            "NULL when any price is unknown",
            "CASE WHEN b.n_unpriced = 0 THEN b.cost_usd END",
        ),
        integer("n_unpriced", "lines whose cost is not known", "b.n_unpriced"),
        real("max_cost_usd", "the limit that was set", "b.max_cost_usd"),
    ),
    "batches b",
)
