"""Outcomes as chat completions: both SDKs parse them, and unknown values are null."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openrouter.components import ChatResult, ChatStreamChunk, OutputFusionServerToolItem

from fusewire.contracts import Answer, Outcome, ToolCall, Usage
from fusewire.testing.factories import make_outcome
from fusewire_ingest.openai.chat_reply import (
    REFUSAL,
    SupersededError,
    chunks,
    completion,
    piece,
)
from fusewire_ingest.openai.failures import failure, is_retryable, is_withheld
from fusewire_ingest.openai.fusion_report import fusion_report

CREATED = 1_767_323_045
ANALYSIS = {
    "consensus": ["Paris"],
    "contradictions": [{"topic": "t", "stances": [{"model": "m-a", "stance": "s"}]}],
    "partial_coverage": [{"models": ["m-a"], "point": "p"}],
    "unique_insights": [{"model": "m-a", "insight": "i"}],
    "blind_spots": [],
}
CALL = ToolCall(id="c1", name="clock", arguments="{}")


def answer(member: str = "a", **overrides: Any) -> Answer:
    fields = {
        "member": member,
        "model": f"m-{member}",
        "tier": "remote",
        "status": "ok",
        "content": "Paris.",
        "usage": Usage(prompt_tokens=10, completion_tokens=2),
        "cost_usd": 0.001,
        "latency_ms": 900.0,
    }
    return Answer(**{**fields, **overrides})


def error(member: str, code: str) -> Answer:
    return answer(
        member, status="error", content=None, error_code=code, usage=Usage(), cost_usd=0.0
    )


def outcome(**overrides: Any) -> Outcome:
    usage = Usage(prompt_tokens=30, completion_tokens=9, cached_tokens=4)
    return make_outcome(
        **{"answers": (answer("a", is_winner=True), answer("b")), "usage": usage, **overrides}
    )


def failed(*codes: str, **overrides: Any) -> Outcome:
    answers = tuple(error(name, code) for name, code in zip("abcdef", codes, strict=False))
    fields = {
        "status": "failed",
        "is_degraded": True,
        "content": None,
        "winner": None,
        "error": "every member failed",
    }
    return outcome(**{**fields, "answers": answers, **overrides})


def reply(stored_outcome: Outcome, **more: Any) -> Any:
    return completion(stored_outcome, model="fusion", created=CREATED, **more)


def stream(
    stored_outcome: Outcome, streamed_text: str = "", *, with_usage: bool = True
) -> list[Any]:
    return list(
        chunks(
            stored_outcome,
            model="fusion",
            created=CREATED,
            streamed_text=streamed_text,
            with_usage=with_usage,
            warnings=("w",),
        )
    )


SHAPES = {
    "voted": outcome(),
    "fused": outcome(status="fused", winner=None, analysis=ANALYSIS, judge_model="m-judge"),
    "tools": outcome(content=None, tool_calls=(CALL,), winner=None),
    "unpriced": outcome(cost_usd=None),
    "free": outcome(cost_usd=0.0),
    "degraded": outcome(
        is_degraded=True,
        degraded_reasons=("judge_failed:not_json",),
        answers=(
            answer("a"),
            error("b", "rate_limited"),
            answer("c", status="missing", content=None),
        ),
    ),
    "thought": outcome(reasoning="It is on the Seine. " * 500),
    "bare": make_outcome(),
}


@pytest.mark.parametrize("name", SHAPES)
def test_both_sdks_read_a_completion(name: str) -> None:
    body = json.loads(json.dumps(reply(SHAPES[name], warnings=("w",))))

    theirs = ChatCompletion.model_validate(body, strict=True)
    assert theirs.choices[0].message.content == SHAPES[name].content
    assert theirs.model_dump(exclude_unset=True)["fusion"] == body["fusion"]
    chat_result = ChatResult.model_validate(body, strict=True)
    assert chat_result.usage is not None
    assert chat_result.usage.cost == SHAPES[name].cost_usd
    item = OutputFusionServerToolItem.model_validate(body["fusion"], strict=True)
    assert item.status == "completed"


@pytest.mark.parametrize("name", SHAPES)
def test_both_sdks_read_every_chunk(name: str) -> None:
    for chunk in [
        *stream(SHAPES[name]),
        piece("f1", model="m", created=1, text="x", is_first=True),
    ]:
        streamed_text = json.loads(json.dumps(chunk))
        ChatCompletionChunk.model_validate(streamed_text, strict=True)
        ChatStreamChunk.model_validate(streamed_text, strict=True)


def test_a_completion() -> None:
    body = reply(SHAPES["voted"])

    assert body["id"] == f"chatcmpl-{SHAPES['voted'].fusion_id}"
    assert (body["object"], body["created"], body["model"]) == (
        "chat.completion",
        CREATED,
        "fusion",
    )
    assert body["system_fingerprint"] == "fusewire"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_usage_is_that_of_the_whole_fusion() -> None:
    usage = reply(SHAPES["voted"])["usage"]

    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        30,
        9,
        39,
    )
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert usage["cost"] == 0.002


@pytest.mark.parametrize(
    ("cost", "of_prompts", "parts"),
    [
        (None, None, None),
        (0.003, None, None),
        (0.0, None, (0.0, 0.0)),
        (0.003, 0.001, (0.001, 0.002)),
        (0.003, 0.003, (0.003, 0.0)),
    ],
)
def test_the_parts_of_a_cost_are_told_only_where_they_are_known(
    cost: float | None, of_prompts: float | None, parts: tuple[float, float] | None
) -> None:
    usage = reply(outcome(cost_usd=cost, cost_prompt_usd=of_prompts))["usage"]

    assert usage["cost"] == cost
    details = usage["cost_details"]
    if parts is None:
        assert details is None
    else:
        assert details["upstream_inference_cost"] == cost
        assert details["upstream_inference_prompt_cost"] == parts[0]
        assert details["upstream_inference_completions_cost"] == parts[1]


def test_tool_calls_are_openais() -> None:
    (choice,) = reply(SHAPES["tools"])["choices"]
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [call],
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(SHAPES["tools"], with_usage=False)]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"tool_calls": [{"index": 0, **call}]},
        {},
    ]


@pytest.mark.parametrize(
    ("stored_outcome", "reason"),
    [
        (
            outcome(
                answers=(answer("b", finish_reason="length"), answer("a", finish_reason="stop"))
            ),
            "stop",
        ),
        (
            outcome(
                answers=(answer("a", finish_reason="length"), answer("b", finish_reason="stop"))
            ),
            "length",
        ),
        (outcome(answers=(answer("a", finish_reason="content_filter"),)), "content_filter"),
        (outcome(answers=(answer("a", finish_reason="tool_calls"),)), "stop"),
        (outcome(winner=None, degraded_reasons=("merge_cut_at_length",)), "length"),
    ],
)
def test_the_finish_reason_is_that_of_the_text(stored_outcome: Outcome, reason: str) -> None:
    assert reply(stored_outcome)["choices"][0]["finish_reason"] == reason
    assert stream(stored_outcome, with_usage=False)[-1]["choices"][0]["finish_reason"] == reason


def test_the_fusion_object() -> None:
    stored_outcome = outcome(
        status="fused",
        is_degraded=True,
        degraded_reasons=("judge_failed:empty",),
        analysis=ANALYSIS,
        answers=(
            answer("a"),
            error("b", "rate_limited"),
            answer("c", status="missing", content=None),
        ),
        answer_kind="open",
        closed_by="quorum",
    )
    report = fusion_report(stored_outcome, ["w"])

    assert list(report)[:2] == ["is_degraded", "degraded_reasons"]
    assert (report["is_degraded"], report["degraded_reasons"]) == (True, ["judge_failed:empty"])
    assert (report["status"], report["outcome_status"], report["strategy"]) == (
        "completed",
        "fused",
        "best-of",
    )
    assert (report["outcome_id"], report["winner"]) == (stored_outcome.fusion_id, "a")
    assert (report["answer_kind"], report["closed_by"], report["agreement"]) == (
        "open",
        "quorum",
        1.0,
    )
    assert (report["cost_usd"], report["warnings"]) == (0.002, ["w"])
    assert report["analysis"] == ANALYSIS
    assert report["responses"] == [{"model": "m-a", "content": "Paris."}]
    assert report["failed_models"] == [
        {
            "model": "m-b",
            "error": "rate_limited",
            "status_code": 429,
            "provider_code": None,
            "param": None,
        },
        {
            "model": "m-c",
            "error": "missing",
            "status_code": None,
            "provider_code": None,
            "param": None,
        },
    ]
    assert report["failure_reason"] == "judge_empty_completion"
    assert report["members"][0] == {
        "member": "a",
        "model": "m-a",
        "status": "ok",
        "error_code": None,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost_usd": 0.001,
        "latency_ms": 900.0,
    }


def test_half_an_answer_is_a_failure_and_no_response() -> None:
    report = fusion_report(
        outcome(answers=(answer("a"), answer("b", status="error", error_code="truncated")))
    )
    assert [response["model"] for response in report["responses"]] == ["m-a"]
    assert [model["model"] for model in report["failed_models"]] == ["m-b"]


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("judge_failed:not_json", "judge_not_valid_json"),
        ("judge_failed:schema_mismatch", "judge_schema_mismatch"),
        ("judge_failed:empty", "judge_empty_completion"),
        ("judge_failed:rate_limited", "judge_upstream_error"),
        ("judge_failed:no_answer", "judge_upstream_error"),
        ("judge_failed:picked_control", None),
        ("missing:a", None),
    ],
)
def test_a_judges_failure_has_openrouters_name(reason: str, name: str | None) -> None:
    assert (
        fusion_report(outcome(is_degraded=True, degraded_reasons=(reason,)))["failure_reason"]
        == name
    )


FAILURES = [
    # outcome, status, code, OpenRouter's reason, whether it may be tried again
    (failed("rate_limited", "rate_limited"), 429, "rate_limited", "rate_limited", True),
    (failed("rate_limited", "refused"), 424, "all_panels_failed", "all_panels_failed", True),
    (failed("unauthorized", "refused"), 424, "all_panels_failed", "all_panels_failed", False),
    (failed("bad_request"), 400, "bad_request", "all_panels_failed", False),
    (failed("model_not_found"), 404, "model_not_found", "all_panels_failed", False),
    (failed("unauthorized"), 424, "provider_key_refused", "all_panels_failed", False),
    (failed("insufficient_quota"), 402, "insufficient_credits", "insufficient_credits", False),
    (failed("context_length_exceeded"), 400, "context_length_exceeded", "all_panels_failed", False),
    (
        failed(error="no member may answer (images)"),
        400,
        "no_member_available",
        "all_panels_failed",
        False,
    ),
    (
        failed(answers=(answer("a", content=None),)),
        424,
        "invalid_tool_calls",
        "all_panels_failed",
        True,
    ),
    (failed("rate_limited", status="expired"), 504, "deadline_exceeded", "all_panels_failed", True),
    (failed(status="expired"), 504, "deadline_exceeded", "all_panels_failed", True),
    (failed("cancelled", status="cancelled"), 409, "cancelled", "cancelled", True),
]


@pytest.mark.parametrize(("stored_outcome", "status", "code", "reason", "is_worth_it"), FAILURES)
def test_a_failure_has_its_status(
    stored_outcome: Outcome, status: int, code: str, reason: str, *, is_worth_it: bool
) -> None:
    failure_error = failure(stored_outcome)
    report = fusion_report(stored_outcome)

    assert (failure_error.status, failure_error.code) == (status, code)
    assert failure_error.message
    assert (report["status"], report["failure_reason"]) == ("incomplete", reason)
    assert is_retryable(stored_outcome.model_dump(mode="json")) is is_worth_it
    OutputFusionServerToolItem.model_validate(report, strict=True)


def test_the_shortest_wait_that_a_provider_asks_for_is_told() -> None:
    waits = {"a": 20.0, "b": 2.5, "c": None}
    limited_answers = [
        answer(n, status="error", error_code="rate_limited", retry_after_s=s)
        for n, s in waits.items()
    ]
    failure_error = failure(failed(answers=tuple(limited_answers)))
    assert (
        failure_error.status,
        failure_error.retry_after_s,
        len(failure_error.failed_models),
    ) == (429, 2.5, 3)
    refused_answer = answer("a", status="error", error_code="bad_request", retry_after_s=1.0)
    assert failure(failed(answers=(refused_answer,))).retry_after_s is None


@pytest.mark.parametrize("codes", [("refused",), ("refused", "refused")])
def test_what_everybody_declines_is_a_refusal(codes: tuple[str, ...]) -> None:
    withheld_outcome = failed(*codes)
    body = completion(withheld_outcome, model="m", created=1)
    assert is_withheld(withheld_outcome)
    assert body["choices"][0]["message"]["refusal"] == REFUSAL
    assert body["choices"][0]["finish_reason"] == "content_filter"
    assert not is_withheld(failed("refused", "timeout"))


def test_what_the_winner_thought_is_told_by_both_of_its_names_and_before_the_answer() -> None:
    reasoning = "ein Gedanke é\n" * 700
    stored_outcome = outcome(reasoning=reasoning)
    message = reply(stored_outcome)["choices"][0]["message"]
    stream_chunks = stream(stored_outcome)
    deltas = [chunk["choices"][0]["delta"] for chunk in stream_chunks if chunk["choices"]]

    assert message["reasoning"] == message["reasoning_content"] == reasoning
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == reasoning
    reasoning_positions = [at for at, delta in enumerate(deltas) if delta.get("reasoning")]
    content_positions = [at for at, delta in enumerate(deltas) if delta.get("content")]
    assert max(reasoning_positions) < min(content_positions)
    assert max(len(json.dumps(chunk).encode()) for chunk in stream_chunks) < 32 * 1024
    assert "reasoning" not in reply(outcome())["choices"][0]["message"]


LONG_TEXT = "é" * 30_000
LONG_CALL = ToolCall(id="c1", name="f", arguments=json.dumps({"x": "y" * 30_000}))


def stream_long_texts() -> list[Any]:
    answers = (answer("a", content=LONG_TEXT), answer("b"))
    return stream(outcome(content=LONG_TEXT, tool_calls=(LONG_CALL,), answers=answers))


def test_no_chunk_makes_a_long_line() -> None:
    lines = [json.dumps(chunk, ensure_ascii=False).encode() for chunk in stream_long_texts()]
    assert max(map(len, lines)) < 32 * 1024


def test_a_long_answer_and_a_long_call_come_in_pieces() -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in stream_long_texts() if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == LONG_TEXT
    calls: list[Any] = []
    for delta in deltas:
        calls += delta.get("tool_calls", ())
    assert "".join(call["function"]["arguments"] for call in calls) == LONG_CALL.arguments
    assert [call["index"] for call in calls] == [0] * len(calls)
    assert (calls[0]["id"], calls[0]["function"]["name"], "id" in calls[1]) == ("c1", "f", False)


def test_long_answers_of_members_come_in_pieces_before_the_report() -> None:
    fusions = [chunk["fusion"] for chunk in stream_long_texts() if "fusion" in chunk]
    text_pieces = [fusion["response"] for fusion in fusions if "response" in fusion]
    assert "".join(text["content"] for text in text_pieces if text["index"] == 0) == LONG_TEXT
    (report,) = [fusion for fusion in fusions if "responses" in fusion]
    assert [response["content"] for response in report["responses"]] == [None, None]


def test_a_stream_in_one_go() -> None:
    stream_chunks = stream(SHAPES["voted"])

    assert [chunk["choices"] and chunk["choices"][0]["delta"] for chunk in stream_chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Paris."},
        {},
        [],
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in stream_chunks[:-1]] == [
        None,
        None,
        "stop",
    ]
    assert stream_chunks[2]["fusion"] == fusion_report(SHAPES["voted"], ["w"])
    assert [i for i, chunk in enumerate(stream_chunks) if "fusion" in chunk] == [2]
    assert [i for i, chunk in enumerate(stream_chunks) if "usage" in chunk] == [3]
    assert {(chunk["id"], chunk["created"], chunk["object"]) for chunk in stream_chunks} == {
        (f"chatcmpl-{SHAPES['voted'].fusion_id}", CREATED, "chat.completion.chunk")
    }
    assert "usage" not in stream(SHAPES["voted"], with_usage=False)[-1]


@given(st.text(min_size=1), st.lists(st.integers(0, 50)))
def test_pieces_and_what_follows_are_the_answer(content: str, cuts: list[int]) -> None:
    stored_outcome = outcome(content=content)
    edges = sorted({0, *(min(cut, len(content)) for cut in cuts)})
    texts = [content[since:until] for since, until in itertools.pairwise(edges)]
    stream_chunks: list[Any] = [
        piece(
            stored_outcome.fusion_id,
            model="fusion",
            created=CREATED,
            text=text,
            is_first=number == 0,
        )
        for number, text in enumerate(texts)
    ]
    stream_chunks += stream(stored_outcome, "".join(texts), with_usage=False)

    deltas = [chunk["choices"][0]["delta"] for chunk in stream_chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert [number for number, delta in enumerate(deltas) if "role" in delta] == [0]
    assert len({chunk["id"] for chunk in stream_chunks}) == 1


@pytest.mark.parametrize("streamed_text", ["Lyon", "Paris. It is", "paris"])
def test_an_answer_that_does_not_go_on_from_what_was_sent_is_told_at_once(
    streamed_text: str,
) -> None:
    with pytest.raises(SupersededError):
        chunks(
            SHAPES["voted"],
            model="fusion",
            created=CREATED,
            streamed_text=streamed_text,
            with_usage=False,
        )
