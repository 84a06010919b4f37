"""Logs, metrics and traces: set up once per process, off where it is not wanted."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import structlog
from opentelemetry import propagate, trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fusewire.settings import Log, Telemetry

REGISTRY = CollectorRegistry()
"""One registry per process; /metrics shows it."""

PUBLISHED = Counter(
    "fusewire_messages_published_total",
    "Messages the server has stored.",
    ["service", "stream"],
    registry=REGISTRY,
)
HANDLED = Counter(
    "fusewire_messages_handled_total",
    "Messages handled, by result: ok, retried, dead.",
    ["service", "stream", "result"],
    registry=REGISTRY,
)
HANDLE_SECONDS = Histogram(
    "fusewire_message_handle_seconds",
    "Time in the handler.",
    ["service", "stream"],
    registry=REGISTRY,
)
CANDIDATES = Counter(
    "fusewire_candidates_total",
    "Candidates made, by error code or ok.",
    ["tier", "model", "result"],
    registry=REGISTRY,
)
CALL_SECONDS = Histogram(
    "fusewire_call_seconds",
    "Time of one model call.",
    ["tier", "model"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
    registry=REGISTRY,
)
OUTCOMES = Counter(
    "fusewire_outcomes_total",
    "Outcomes stored.",
    ["pool", "mode", "status", "degraded"],
    registry=REGISTRY,
)
OUTCOME_SECONDS = Histogram(
    "fusewire_outcome_seconds",
    "Time from acceptance to outcome.",
    ["pool", "mode"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900),
    registry=REGISTRY,
)
ACCEPTED = Counter(
    "fusewire_prompts_accepted_total", "Prompts committed.", ["source"], registry=REGISTRY
)
STORE_USED = Gauge(
    "fusewire_store_used_ratio",
    "Share of a stream's limit that is taken, 0 to 1.",
    ["stream"],
    registry=REGISTRY,
)
UNPUBLISHED = Gauge(
    "fusewire_prompts_unpublished", "Prompts committed and not yet published.", registry=REGISTRY
)

TRANSACTIONS = Counter(
    "fusewire_transactions_total",
    "Transactions begun on the database: read or write.",
    ["kind"],
    registry=REGISTRY,
)

_tracer = trace.get_tracer("fusewire")
_tracing = False


def configure(
    log: Log, telemetry: Telemetry, *, service: str, stream: TextIO | None = None
) -> None:
    """Set up logging to a stream (stderr), and tracing where an endpoint is given."""
    global _tracing  # noqa: PLW0603 - a process has one tracer

    def named(
        _logger: Any, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault("service", service)
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        named,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_text,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log.format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[log.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    # What libraries say below a warning is theirs; above it, it goes to the same place.
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryLogHandler()], force=True)
    if telemetry.otlp_endpoint:
        _export_traces(telemetry.otlp_endpoint, service)
        _tracing = True


class _LibraryLogHandler(logging.Handler):
    """What libraries log, as events of our own.

    Of their texts the first line before values are put into it: in values, and in what an exception says, there may
    be a prompt.
    """

    def emit(self, record: logging.LogRecord) -> None:
        what = str(record.msg).strip().partition("\n")[0]
        exc = record.exc_info[1] if record.exc_info else None
        about: dict[str, Any] = {"exc_info": exc} if exc else {}
        log = structlog.get_logger()
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell("library.logged", logger=record.name, what=what, **about)


def _without_text(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """An exception as its type and where it came from: its text, and the locals on its way, may hold a prompt."""
    found = event.pop("exc_info", None)
    exc = found if isinstance(found, BaseException) else sys.exc_info()[1] if found else None
    if exc is not None:
        frames = traceback.extract_tb(exc.__traceback__)
        event["fault"] = type(exc).__name__
        event["trace"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]
    return event


def _export_traces(endpoint: str, service: str) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - loaded only where it is needed
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - loaded only where it is needed
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - loaded only where it is needed

    provider = TracerProvider(resource=Resource.create({"service.name": f"fusewire-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)


def broker_middlewares() -> list[Any]:
    """FastStream's own middlewares. Not that for metrics: it labels them with each subject, which holds ids."""
    if not _tracing:
        return []
    from faststream.nats.opentelemetry import NatsTelemetryMiddleware  # noqa: PLC0415 - loaded only where it is needed

    return [NatsTelemetryMiddleware(tracer_provider=trace.get_tracer_provider())]


def trace_headers() -> dict[str, str]:
    """W3C trace context of the current span; empty where tracing is off."""
    if not _tracing:
        return {}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


@contextlib.contextmanager
def receiving(service: str, subject: str, headers: Mapping[str, str]) -> Iterator[None]:
    """A span around the handling of one message, continuing the sender's trace, and fusion_id on every log line."""
    kind, _, rest = subject.removeprefix("fw.").partition(".")
    fusion = (
        {"fusion_id": rest.partition(".")[0]}
        if kind in ("round", "plan", "candidate", "due")
        else {}
    )
    with structlog.contextvars.bound_contextvars(service=service, **fusion):
        if not _tracing:
            yield
            return
        context = propagate.extract(headers)
        with _tracer.start_as_current_span(f"{service} {kind}", context=context) as span:
            for key, value in fusion.items():
                span.set_attribute(f"fusewire.{key}", value)
            yield


@contextlib.contextmanager
def span(name: str, traces: Collection[str] = (), **attributes: str | int) -> Iterator[None]:
    """A span around what is done within it; nothing where tracing is off.

    Args:
        name: what is done.
        traces: W3C `traceparent`s of what it is done for. Of one it is a part, of several it has links to each; without
            any it is a part of the current span.
        attributes: of it, without `fusewire.` before each.
    """
    if not _tracing:
        yield
        return
    contexts = [propagate.extract({"traceparent": header}) for header in traces]
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts]
    given = {f"fusewire.{key}": value for key, value in attributes.items()}
    is_of_one = len(contexts) == 1
    parent = contexts[0] if is_of_one else None
    with _tracer.start_as_current_span(
        name, parent, links=[] if is_of_one else links, attributes=given
    ):
        yield


def bind_fusion(fusion_id: str) -> None:
    """Put the fusion's id on every log line until the current message is done."""
    structlog.contextvars.bind_contextvars(fusion_id=fusion_id)
    if _tracing:
        trace.get_current_span().set_attribute("fusewire.fusion_id", fusion_id)
