"""Logs and traces, set up once per process."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from opentelemetry import propagate, trace

from fusewire.settings import Log, Telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult

_tracer = trace.get_tracer("fusewire")
_tracing = False


def configure(
    log: Log, telemetry: Telemetry, *, service: str, stream: TextIO | None = None
) -> None:
    """Set up logging to a stream (stderr by default), and tracing if an endpoint is configured."""
    global _tracing  # noqa: PLW0603 - a process has one tracer

    def add_service(
        _logger: Any, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault("service", service)
        return event

    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_service,
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
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[log.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Libraries' messages from warnings on go to the same stream.
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryLogHandler()], force=True)
    if telemetry.otlp_endpoint:
        _export_traces(telemetry.otlp_endpoint, service)
        _tracing = True


class _LibraryLogHandler(logging.Handler):
    """Logs libraries' messages as events of our own.

    Only the first line of a message is logged, and without its arguments: arguments and the texts
    of exceptions may hold a prompt.
    """

    def emit(self, record: logging.LogRecord) -> None:
        what = str(record.msg).strip().partition("\n")[0]
        exc = record.exc_info[1] if record.exc_info else None
        fields: dict[str, Any] = {"exc_info": exc} if exc else {}
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method("library.logged", logger=record.name, what=what, **fields)


def _without_text(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Log an exception as its type and stack: its text and its locals may hold a prompt."""
    exc = event.pop("exc_info", None)
    if exc and not isinstance(exc, BaseException):
        exc = sys.exc_info()[1]
    if isinstance(exc, BaseException):
        frames = traceback.extract_tb(exc.__traceback__)
        event["fault"] = type(exc).__name__
        event["trace"] = [
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames
        ]
    return event


def _export_traces(endpoint: str, service: str) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - loaded only where it is needed
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - loaded only where it is needed
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - loaded only where it is needed

    class Exporter(OTLPSpanExporter):
        """Exports no text of an exception."""

        def export(self, spans: Sequence["ReadableSpan"]) -> "SpanExportResult":
            return super().export([without_exception_text(span) for span in spans])

    provider = TracerProvider(resource=Resource.create({"service.name": f"fusewire-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(Exporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)


def without_exception_text(span: "ReadableSpan") -> "ReadableSpan":
    """The same span, with exceptions as their types alone: their texts may hold a prompt.

    OpenTelemetry records the text and the stack of an exception that leaves a span, as an event and
    as the description of the span's status.
    """
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415 - an extra

    faults = [str((event.attributes or {}).get("exception.type")) for event in span.events]
    attributes = dict(span.attributes or {})
    if faults:
        attributes["error.type"] = faults[-1]
    return ReadableSpan(
        span.name,
        span.context,
        span.parent,
        span.resource,
        attributes,
        links=span.links,
        kind=span.kind,
        status=trace.Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def broker_middlewares() -> list[Any]:
    """FastStream's middleware for traces, if they are on.

    Its middleware for metrics is not used: it would make a label of each subject, which holds ids.
    """
    if not _tracing:
        return []
    from faststream.nats.opentelemetry import NatsTelemetryMiddleware  # noqa: PLC0415 - loaded only where it is needed

    return [NatsTelemetryMiddleware(tracer_provider=trace.get_tracer_provider())]


def trace_headers() -> dict[str, str]:
    """W3C trace context of the current span; empty if tracing is off."""
    if not _tracing:
        return {}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


@contextlib.contextmanager
def receiving(service: str, subject: str, headers: Mapping[str, str]) -> Iterator[None]:
    """A span around the handling of one message, and its fusion_id on every log line.

    The span continues the sender's trace.
    """
    kind, _, rest = subject.removeprefix("fw.").partition(".")
    fusion: dict[str, str] = {}
    if kind in ("round", "plan", "candidate", "due"):
        fusion["fusion_id"] = rest.partition(".")[0]
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
    """A span around the block; nothing if tracing is off.

    Args:
        name: the operation.
        traces: W3C `traceparent`s of the operation's causes. One becomes the parent, several become
            links; without any the current span is the parent.
        attributes: the span's attributes, without the prefix `fusewire.`.
    """
    if not _tracing:
        yield
        return
    contexts = [propagate.extract({"traceparent": header}) for header in traces]
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts]
    prefixed_attributes = {f"fusewire.{key}": value for key, value in attributes.items()}
    parent = None
    if len(contexts) == 1:
        parent, links = contexts[0], []
    with _tracer.start_as_current_span(name, parent, links=links, attributes=prefixed_attributes):
        yield


def bind_fusion(fusion_id: str) -> None:
    """Add the fusion's id to every log line until the current message is handled."""
    structlog.contextvars.bind_contextvars(fusion_id=fusion_id)
    if _tracing:
        trace.get_current_span().set_attribute("fusewire.fusion_id", fusion_id)
