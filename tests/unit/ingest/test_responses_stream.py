"""Events of a response: OpenAI's SDK parses them, no line is long, and no text is taken back."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from fusewire.contracts import ToolCall
from fusewire.testing.factories import make_outcome
from fusewire_ingest.openai.chat_reply import SupersededError
from fusewire_ingest.openai.responses import response_of, shell
from fusewire_ingest.openai.responses_stream import ResponseEvents

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
LONG = "é" * 30_000
CALL = ToolCall(id="c1", name="f", arguments=json.dumps({"x": "y" * 30_000}))


def begin_events() -> ResponseEvents:
    return ResponseEvents(shell("f1", model="fusion", created=1))


def response(**fields: Any) -> Any:
    return response_of(make_outcome(**fields).model_dump(mode="json"), model="fusion", created=1)


def read(events: Iterable[dict[str, Any]]) -> list[Any]:
    all_events = list(events)
    # The last one holds the whole response, as OpenAI's does.
    assert all(
        len(json.dumps(event, ensure_ascii=False).encode()) < 32 * 1024
        for event in all_events
        if "delta" in event
    )
    return [EVENT.validate_python(event) for event in all_events]


def test_text_and_calls_come_in_pieces() -> None:
    of = begin_events()
    events = read(
        [*of.begin(), *of.text(LONG[:10]), *of.end(response(content=LONG, tool_calls=(CALL,)))]
    )
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == LONG
    calls = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(e.delta for e in calls) == CALL.arguments
    assert {e.output_index for e in calls} == {1}
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events].count("response.output_item.added") == 2
    assert events[-1].type == "response.completed"


def test_an_answer_that_was_cut_is_incomplete() -> None:
    of = begin_events()
    events = read(of.end(response(content="cut", degraded_reasons=("merge_cut_at_length",))))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


def test_another_answer_than_the_one_that_was_told_is_none() -> None:
    of = begin_events()
    list(of.text("Something else"))
    with pytest.raises(SupersededError):
        of.end(response(content="Paris."))


def test_a_failure_is_an_error_and_a_failed_response() -> None:
    error, failed = read(
        begin_events().fail("all_panels_failed", "every member failed", {"outcome_id": "f1"})
    )
    assert (error.code, error.message) == ("all_panels_failed", "every member failed")
    assert (failed.response.status, failed.response.error.message) == (
        "failed",
        "every member failed",
    )
