"""The metrics that `/metrics` shows. No label holds an id: each has a few values.

A label has the values that the configuration or the code names. What many replicas measure of one
thing, such as a stream, each of them reports: take the maximum, not the sum.
"""

import functools
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from fusewire.contracts import Candidate, Outcome
from fusewire.contracts.degraded import DegradedReason

REGISTRY = CollectorRegistry()
"""One registry per process; /metrics shows it."""
ProcessCollector(registry=REGISTRY)
# Nobody reads the time at which a series began.
disable_created_metrics()  # type: ignore[no-untyped-call]

LABELS: dict[str, tuple[str, ...]] = {}
"""The names of each metric's labels."""

CALL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OUTCOME_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
RESULTS = ("ok", "retried", "dead")
METHODS = ("GET", "POST", "DELETE", "OPTIONS")
"""Methods that the API knows; a client may send any word as one."""


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    LABELS[name] = labels
    return Counter(name, meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    LABELS[name] = labels
    return Gauge(name, meaning, labels, registry=REGISTRY)


def _histogram(
    name: str, meaning: str, *labels: str, buckets: Sequence[float] = Histogram.DEFAULT_BUCKETS
) -> Histogram:
    LABELS[name] = labels
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


# -- messages ---------------------------------------------------------------------------------

PUBLISHED = _counter(
    "fusewire_messages_published_total", "Messages the server has stored.", "service", "stream"
)
HANDLED = _counter(
    "fusewire_messages_handled_total",
    "Messages handled, by result: ok, retried, dead.",
    "service",
    "stream",
    "result",
)
HANDLE_SECONDS = _histogram(
    "fusewire_message_handle_seconds",
    "Time in the handler, of one message, or of the judge's batch of them.",
    "service",
    "stream",
)
CONSUMER_PENDING = _gauge(
    "fusewire_consumer_pending",
    "Messages that wait for a consumer. All replicas report the same.",
    "stream",
    "durable",
)
CONSUMER_IN_HAND = _gauge(
    "fusewire_consumer_ack_pending",
    "Messages that a consumer has handed out and that are not acknowledged. All replicas"
    " report the same.",
    "stream",
    "durable",
)
STREAM_MESSAGES = _gauge(
    "fusewire_stream_messages",
    "Messages that a stream holds. All replicas of ingest report the same.",
    "stream",
)
STORE_USED = _gauge(
    "fusewire_store_used_ratio",
    "Share of a stream's limit that is taken, 0 to 1. All replicas of ingest report the same.",
    "stream",
)

# -- ingest -----------------------------------------------------------------------------------

HTTP_REQUESTS = _counter(
    "fusewire_http_requests_total",
    "Requests of the API by route and status; status 'none': the client left before a response.",
    "method",
    "route",
    "status",
)
HTTP_SECONDS = _histogram(
    "fusewire_http_request_seconds",
    "Time from a request of the API to the end of its response, the wait for an outcome included.",
    "method",
    "route",
    buckets=CALL_BUCKETS,
)
ACCEPTED = _counter("fusewire_prompts_accepted_total", "Prompts committed.", "source")
UNPUBLISHED = _gauge(
    "fusewire_prompts_unpublished",
    "Prompts committed and not yet published. All replicas of ingest report the same.",
)
BATCH_LINES = _gauge(
    "fusewire_batch_lines_in_flight",
    "Lines of batches that are submitted and not settled. All replicas of ingest report the same.",
)
_BUDGET_LABELS = ("tenant", "pool", "period")
"""The budget of a tenant has no pool, and that of a pool no tenant."""
BUDGET_LIMIT = _gauge(
    "fusewire_budget_limit_usd",
    "What a tenant or a pool may spend in its current period, USD.",
    *_BUDGET_LABELS,
)
BUDGET_SPENT = _gauge(
    "fusewire_budget_spent_usd",
    "What a tenant or a pool has spent in its current period, USD. All replicas of ingest report"
    " the same.",
    *_BUDGET_LABELS,
)
BUDGET_RESERVED = _gauge(
    "fusewire_budget_reserved_usd",
    "The most that the running fusions of a tenant or a pool may cost, USD. All replicas of ingest"
    " report the same.",
    *_BUDGET_LABELS,
)
BUDGET_SOFT_PASSED = _counter(
    "fusewire_budget_soft_limits_passed_total",
    "Soft limits of budgets that were passed, once a period each, by whose they are: tenant, key or"
    " pool.",
    "kind",
)
BUDGET_REFUSED = _counter(
    "fusewire_budget_refusals_total",
    "Prompts that a budget refused, each try of a batch's line included, by whose budget it is:"
    " tenant, key or pool.",
    "kind",
)
for _kind in ("tenant", "key", "pool"):
    # Shown before the first is counted.
    BUDGET_SOFT_PASSED.labels(_kind)
    BUDGET_REFUSED.labels(_kind)

# -- workers ----------------------------------------------------------------------------------

CANDIDATES = _counter(
    "fusewire_candidates_total", "Candidates made, by error code or ok.", "tier", "model", "result"
)
CALL_SECONDS = _histogram(
    "fusewire_call_seconds", "Time of one model call.", "tier", "model", buckets=CALL_BUCKETS
)
TOKENS = _counter(
    "fusewire_tokens_total",
    "Tokens of calls, as the provider or the engine counted them: prompt or completion.",
    "tier",
    "model",
    "kind",
)
COST = _counter(
    "fusewire_call_cost_usd_total",
    "What calls of hosted models cost, USD; calls without a known price are left out.",
    "model",
)
RETRIES = _counter(
    "fusewire_call_retries_total",
    "Calls made again for the same task, after the first.",
    "tier",
    "model",
)
AMBIGUOUS = _counter(
    "fusewire_calls_maybe_paid_twice_total",
    "Paid calls that were made again after a result was lost, so that both may be billed.",
)
CONCURRENCY_LIMIT = _gauge(
    "fusewire_concurrency_limit",
    "Calls of a hosted model that a worker makes at once: max_concurrency, or fewer while the"
    " provider has too many.",
    "model",
)
BREAKER_STATE = _gauge(
    "fusewire_breaker_state",
    "Whether a worker calls a hosted model: 0 yes, 1 one call is under way that shows whether it"
    " works again, 2 no; from 2 it changes with the next call after the open time.",
    "model",
)
BREAKER_OPENS = _counter(
    "fusewire_breaker_opens_total",
    "Times that a hosted model was no longer called, by the error code that led to it; each try"
    " that fails counts.",
    "model",
    "reason",
)
CALLS_REFUSED = _counter(
    "fusewire_calls_refused_total",
    "Calls that were not made, or not made again: breaker, retry_budget.",
    "model",
    "reason",
)
EDGE_SLOTS = _gauge(
    "fusewire_edge_slots", "Answers that an edge worker may generate at once.", "model"
)
EDGE_PROVIDER = _gauge(
    "fusewire_edge_provider",
    "1 for the execution provider that computes an edge worker's model, once it is loaded.",
    "model",
    "provider",
)
EDGE_RUNNING = _gauge(
    "fusewire_edge_tasks_running",
    "Tasks that an edge worker's engine has, those that wait in it included.",
    "model",
)
EDGE_DECODING = _gauge(
    "fusewire_edge_decoding",
    "Answers that an edge engine is generating, one token of each in every step.",
    "model",
)
EDGE_QUEUE = _gauge(
    "fusewire_edge_queue",
    "Requests that wait within an edge engine for a slot or for memory.",
    "model",
    "priority",
)
EDGE_KV = _gauge(
    "fusewire_edge_kv_tokens",
    "Tokens in an edge engine's KV cache: running (reserved), prefixes (kept) and limit (of both).",
    "model",
    "kind",
)
EDGE_TOKENS = _counter(
    "fusewire_edge_tokens_total",
    "Tokens of an edge engine: prefill (computed), cached (reused), decode (generated).",
    "model",
    "kind",
)

# -- outcomes ---------------------------------------------------------------------------------

OUTCOMES = _counter(
    "fusewire_outcomes_total", "Outcomes stored.", "pool", "mode", "status", "degraded"
)
OUTCOME_SECONDS = _histogram(
    "fusewire_outcome_seconds",
    "Time from acceptance to outcome; batch: whether the prompt belongs to a batch.",
    "pool",
    "mode",
    "batch",
    buckets=OUTCOME_BUCKETS,
)
PANELS = _counter(
    "fusewire_panels_closed_total",
    "Panels closed, by what closed them: complete, certain, likely, gate, quorum, deadline.",
    "pool",
    "closed_by",
)
ROUTES = _counter(
    "fusewire_routes_total",
    "Prompts to pools with a learned route, by why whom was asked: predicted (fewer than all were),"
    " explored, unlearned, too_risky.",
    "pool",
    "reason",
)
DEGRADED = _counter(
    "fusewire_degraded_reasons_total",
    "Reasons of degraded outcomes, by code; an outcome may have several.",
    "pool",
    "reason",
)
VERDICTS = _counter(
    "fusewire_verdicts_total",
    "Verdicts of judges, by how they were read: strict, repaired, reasked, fallback; or void.",
    "model",
    "result",
)

# -- database ---------------------------------------------------------------------------------

TRANSACTIONS = _counter(
    "fusewire_transactions_total", "Transactions begun on the database: read or write.", "kind"
)
TRANSACTION_SECONDS = _histogram(
    "fusewire_transaction_seconds",
    "Time of one transaction, the wait for a connection or for SQLite's write lock included.",
    "kind",
)
DATABASE_FAILURES = _counter(
    "fusewire_database_failures_total",
    "Transactions that failed because the database did not answer.",
)


@functools.cache
def _publish_counter(service: str, stream: str) -> Counter:
    return PUBLISHED.labels(service, stream)


def count_published(service: str, stream: str) -> None:
    """Count a message that a stream has taken."""
    _publish_counter(service, stream).inc()


@functools.cache
def handle_seconds(service: str, stream: str) -> Histogram:
    """How long a service handles a stream's messages."""
    return HANDLE_SECONDS.labels(service, stream)


@functools.cache
def _result_counters(service: str, stream: str) -> dict[str, Counter]:
    # All results at once: Prometheus sees no increase in a series that begins with 1.
    return {result: HANDLED.labels(service, stream, result) for result in RESULTS}


def count_handled(service: str, stream: str, result: str, count: int = 1) -> None:
    """Count messages that were handled, with one of `RESULTS`."""
    _result_counters(service, stream)[result].inc(count)


def count_request(method: str, route: str, status: int | None, seconds: float) -> None:
    """Count a request of the API.

    Args:
        method: as the client sent it.
        route: the route's template without its prefix, such as `/fusions/{fusion_id}`; empty if
            there is none.
        status: of the response; None if there was none.
        seconds: until the end of the response.
    """
    method = method if method in METHODS else "other"
    HTTP_REQUESTS.labels(method, route or "none", str(status or "none")).inc()
    HTTP_SECONDS.labels(method, route or "none").observe(seconds)


def count_candidate(candidate: Candidate) -> None:
    """Count a candidate that a worker has published, and what it cost."""
    tier, model = candidate.tier, candidate.model
    CANDIDATES.labels(tier, model, candidate.error.code if candidate.error else "ok").inc()
    CALL_SECONDS.labels(tier, model).observe(candidate.latency_ms / 1000)
    RETRIES.labels(tier, model).inc(max(0, candidate.attempts - 1))
    AMBIGUOUS.inc(candidate.maybe_paid_twice)
    if candidate.usage:
        TOKENS.labels(tier, model, "prompt").inc(candidate.usage.prompt_tokens)
        TOKENS.labels(tier, model, "completion").inc(candidate.usage.completion_tokens)
    if candidate.cost_usd:
        COST.labels(model).inc(candidate.cost_usd)


def count_outcome(final: Outcome) -> None:
    """Count an outcome that the judge has stored, and its verdicts."""
    is_degraded = str(final.is_degraded).lower()
    is_batch = str(final.batch_id is not None).lower()
    OUTCOMES.labels(final.pool, final.mode, final.status, is_degraded).inc()
    OUTCOME_SECONDS.labels(final.pool, final.mode, is_batch).observe(final.latency_ms / 1000)
    if final.closed_by:
        PANELS.labels(final.pool, final.closed_by).inc()
    if final.route:
        ROUTES.labels(final.pool, final.route.reason).inc()
    for code in {DegradedReason.parse(reason).code for reason in final.degraded_reasons}:
        DEGRADED.labels(final.pool, code).inc()
    for verdict in final.verdicts:
        VERDICTS.labels(verdict.judge_model, "void" if verdict.void else str(verdict.rung)).inc()
