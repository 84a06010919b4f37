"""Logs: one JSON object per line, with the fusion's id, and never the text of an exception."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from fusewire import telemetry
from fusewire.settings import Log, Telemetry

SECRET = "s3cr3t"


@pytest.fixture
def restore_logging() -> Iterator[None]:
    """The log's set-up, as it was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream(restore_logging: None) -> io.StringIO:
    return io.StringIO()


def configure_log(
    stream: io.StringIO, style: Literal["json", "console"] = "json", **log: Any
) -> Any:
    telemetry.configure(Log(format=style, **log), Telemetry(), service="test", stream=stream)
    return structlog.get_logger()


def test_a_line_is_one_json_object(stream: io.StringIO) -> None:
    log = configure_log(stream)

    with telemetry.receiving("judge", "fw.plan.f123", {}):
        log.info("judge.decided", status="voted")
    log.debug("not.shown")

    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "judge.decided",
        "level": "info",
        "service": "judge",
        "fusion_id": "f123",
        "status": "voted",
    }


@pytest.mark.parametrize("style", ["json", "console"])
def test_an_exception_is_told_by_its_type_and_place_alone(
    stream: io.StringIO, style: Literal["json", "console"]
) -> None:
    log = configure_log(stream, style)

    def fails(prompt: str) -> None:
        raise ValueError(f"cannot handle {prompt}")

    try:
        fails(SECRET)
    except ValueError as exc:
        log.exception("sweep.broken")
        log.warning("again", exc_info=exc)

    text = stream.getvalue()
    assert SECRET not in text
    assert text.count("ValueError") == 2
    assert "test_telemetry.py" in text
    assert "fails" in text


SUBJECTS = [
    ("fw.plan.f1", "f1"),
    ("fw.candidate.f1.0.a", "f1"),
    ("fw.round.f1", "f1"),
    ("fw.due.f1", "f1"),
    ("fw.task.edge.tiny.low", None),
    ("fw.in.acme", None),
]


@pytest.mark.parametrize(("subject", "fusion_id"), SUBJECTS)
def test_the_fusion_is_bound_while_its_message_is_handled(
    subject: str, fusion_id: str | None
) -> None:
    with telemetry.receiving("judge", subject, {}):
        assert structlog.contextvars.get_contextvars().get("fusion_id") == fusion_id
    assert structlog.contextvars.get_contextvars() == {}


def test_a_line_names_its_service_wherever_it_comes_from(stream: io.StringIO) -> None:
    configure_log(stream).info("up.restarted", what="judge")
    assert json.loads(stream.getvalue())["service"] == "test"


PARENTS = [f"00-{digit * 32}-{digit * 16}-01" for digit in "ab"]


@pytest.mark.parametrize(
    ("traces", "trace_id", "links"),
    [(PARENTS[:1], int("a" * 32, 16), []), (PARENTS, None, ["a" * 32, "b" * 32])],
)
def test_a_span_is_a_part_of_one_trace_or_has_links_to_several(
    monkeypatch: pytest.MonkeyPatch, traces: list[str], trace_id: int | None, links: list[str]
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracing", True)
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))

    with telemetry.span("judge turn", traces, fusions=2):
        pass

    (span,) = exporter.get_finished_spans()
    assert (span.name, dict(span.attributes or {})) == ("judge turn", {"fusewire.fusions": 2})
    assert [f"{link.context.trace_id:032x}" for link in span.links] == links
    if trace_id is not None:
        assert span.context is not None
        assert span.context.trace_id == trace_id
    provider.shutdown()


def test_a_span_is_exported_without_the_text_of_its_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracing", True)
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    with pytest.raises(ValueError, match=SECRET), telemetry.span("judge turn", PARENTS, fusions=2):
        raise ValueError(f"cannot read {SECRET}")

    (span,) = exporter.get_finished_spans()
    assert SECRET in span.to_json(), "OpenTelemetry records it"
    cleaned_span = telemetry.without_exception_text(span)
    assert SECRET not in cleaned_span.to_json()
    assert cleaned_span.attributes == {"fusewire.fusions": 2, "error.type": "ValueError"}
    assert cleaned_span.status.status_code is StatusCode.ERROR
    for field in ("name", "context", "parent", "resource", "links", "kind", "start_time",
                  "end_time", "instrumentation_scope"):  # fmt: skip
        assert getattr(cleaned_span, field) == getattr(span, field)
    provider.shutdown()


def test_without_tracing_a_span_costs_nothing() -> None:
    with telemetry.span("judge turn", ["no traceparent"]):
        assert telemetry.trace_headers() == {}


def test_libraries_are_heard_from_a_warning_up_without_the_values_in_their_texts(
    stream: io.StringIO,
) -> None:
    configure_log(stream)

    logging.getLogger("someone").info("chatter")
    logging.getLogger("someone").warning("trouble with %s\nat length", SECRET)
    try:
        int(SECRET)
    except ValueError:
        logging.getLogger("someone").exception("worse")

    trouble, worse = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (trouble["event"], trouble["logger"], trouble["level"]) == (
        "library.logged",
        "someone",
        "warning",
    )
    assert trouble["what"] == "trouble with %s"
    assert (worse["what"], worse["level"], worse["fault"]) == ("worse", "error", "ValueError")
    assert SECRET not in stream.getvalue()
