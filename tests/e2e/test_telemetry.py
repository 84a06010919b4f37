"""Traces and logs go where they are sent, and no prompt goes with them."""

import json

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fusewire.testing.collector import collecting
from fusewire.testing.command_line import Cli, bare

CANARY = "zebracanary77"


def test_a_fusion_leaves_one_trace_and_its_log_and_neither_holds_the_prompt(cli: Cli) -> None:
    with collecting() as collector:
        traced = bare(
            cli.folder,
            FUSEWIRE_TELEMETRY__OTLP_ENDPOINT=collector.endpoint,
            FUSEWIRE_LOG__LEVEL="debug",
        )
        asked = traced.run("ask", f"What is {CANARY}?")
    assert asked.returncode == 0, asked.stderr
    # The fake model repeats what it is asked, so an answer in a log would show as well.
    assert CANARY in asked.stdout
    spans = [
        span
        for body in collector.bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    wanted = {
        "ingest http", "dispatcher prompt", "worker-remote task", "model call", "judge turn",
        "dispatcher round",
    }  # fmt: skip
    traces: dict[bytes, set[str]] = {}
    for span in spans:
        if span.name in wanted:
            traces.setdefault(span.trace_id, set()).add(span.name)
    whole = max(traces.values(), key=len)
    assert whole == wanted
    # A turn that the judge's sweep begins belongs to no message, and has a trace of its own.
    assert all(names in (wanted, {"judge turn"}) for names in traces.values())
    log = (cli.folder / ".fusewire" / "fusewire.log").read_text()
    for event in ("ingest.accepted", "dispatcher.planned", "worker.candidate", "judge.decided"):
        assert event in log
    assert CANARY.encode() not in b"".join(collector.bodies)
    assert CANARY not in log
    assert CANARY not in asked.stderr


def test_a_fusion_is_one_line_of_the_log_unless_more_is_asked_for(cli: Cli) -> None:
    asked = bare(cli.folder, FUSEWIRE_LOG__LEVEL="info").run("ask", "Why?")
    assert asked.returncode == 0, asked.stderr

    lines = (cli.folder / ".fusewire" / "fusewire.log").read_text().splitlines()
    of_fusion = [line for line in map(json.loads, lines) if "fusion_id" in line]
    assert [line["event"] for line in of_fusion] == ["judge.decided"]
