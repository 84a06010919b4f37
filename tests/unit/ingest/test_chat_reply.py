"""Outcomes as chat completions: both SDKs read them, what is not known is null, what is degraded stands first."""

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
    used = Usage(prompt_tokens=30, completion_tokens=9, cached_tokens=4)
    return make_outcome(
        **{"answers": (answer("a", is_winner=True), answer("b")), "usage": used, **overrides}
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


def reply(of: Outcome, **more: Any) -> Any:
    return completion(of, model="fusion", created=CREATED, **more)


def streamed(of: Outcome, sent: str = "", *, with_usage: bool = True) -> list[Any]:
    return list(
        chunks(
            of, model="fusion", created=CREATED, streamed_text=sent, with_usage=with_usage, warnings=("w",)
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
    made = json.loads(json.dumps(reply(SHAPES[name], warnings=("w",))))

    theirs = ChatCompletion.model_validate(made, strict=True)
    assert theirs.choices[0].message.content == SHAPES[name].content
    assert theirs.model_dump(exclude_unset=True)["fusion"] == made["fusion"]
    routed = ChatResult.model_validate(made, strict=True)
    assert routed.usage is not None
    assert routed.usage.cost == SHAPES[name].cost_usd
    item = OutputFusionServerToolItem.model_validate(made["fusion"], strict=True)
    assert item.status == "completed"


@pytest.mark.parametrize("name", SHAPES)
def test_both_sdks_read_every_chunk(name: str) -> None:
    for made in [
        *streamed(SHAPES[name]),
        piece("f1", model="m", created=1, text="x", is_first=True),
    ]:
        sent = json.loads(json.dumps(made))
        ChatCompletionChunk.model_validate(sent, strict=True)
        ChatStreamChunk.model_validate(sent, strict=True)


def test_a_completion() -> None:
    made = reply(SHAPES["voted"])

    assert made["id"] == f"chatcmpl-{SHAPES['voted'].fusion_id}"
    assert (made["object"], made["created"], made["model"]) == (
        "chat.completion",
        CREATED,
        "fusion",
    )
    assert made["system_fingerprint"] == "fusewire"
    (choice,) = made["choices"]
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
    deltas = [one["choices"][0]["delta"] for one in streamed(SHAPES["tools"], with_usage=False)]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"tool_calls": [{"index": 0, **call}]},
        {},
    ]


@pytest.mark.parametrize(
    ("of", "reason"),
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
def test_the_finish_reason_is_that_of_the_text(of: Outcome, reason: str) -> None:
    assert reply(of)["choices"][0]["finish_reason"] == reason
    assert streamed(of, with_usage=False)[-1]["choices"][0]["finish_reason"] == reason


def test_the_fusion_object() -> None:
    of = outcome(
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
    made = fusion_report(of, ["w"])

    assert list(made)[:2] == ["is_degraded", "degraded_reasons"]
    assert (made["is_degraded"], made["degraded_reasons"]) == (True, ["judge_failed:empty"])
    assert (made["status"], made["outcome_status"], made["strategy"]) == (
        "completed",
        "fused",
        "best-of",
    )
    assert (made["outcome_id"], made["winner"]) == (of.fusion_id, "a")
    assert (made["answer_kind"], made["closed_by"], made["agreement"]) == ("open", "quorum", 1.0)
    assert (made["cost_usd"], made["warnings"]) == (0.002, ["w"])
    assert made["analysis"] == ANALYSIS
    assert made["responses"] == [{"model": "m-a", "content": "Paris."}]
    assert made["failed_models"] == [
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
    assert made["failure_reason"] == "judge_empty_completion"
    assert made["members"][0] == {
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
    made = fusion_report(
        outcome(answers=(answer("a"), answer("b", status="error", error_code="truncated")))
    )
    assert [one["model"] for one in made["responses"]] == ["m-a"]
    assert [one["model"] for one in made["failed_models"]] == ["m-b"]


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
    assert fusion_report(outcome(is_degraded=True, degraded_reasons=(reason,)))["failure_reason"] == name


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


@pytest.mark.parametrize(("of", "status", "code", "reason", "is_worth_it"), FAILURES)
def test_a_failure_has_its_status(
    of: Outcome, status: int, code: str, reason: str, *, is_worth_it: bool
) -> None:
    found = failure(of)
    made = fusion_report(of)

    assert (found.status, found.code) == (status, code)
    assert found.message
    assert (made["status"], made["failure_reason"]) == ("incomplete", reason)
    assert is_retryable(of.model_dump(mode="json")) is is_worth_it
    OutputFusionServerToolItem.model_validate(made, strict=True)


def test_the_shortest_wait_that_a_provider_asks_for_is_told() -> None:
    waits = {"a": 20.0, "b": 2.5, "c": None}
    limited = [
        answer(n, status="error", error_code="rate_limited", retry_after_s=s)
        for n, s in waits.items()
    ]
    found = failure(failed(answers=tuple(limited)))
    assert (found.status, found.retry_after_s, len(found.failed_models)) == (429, 2.5, 3)
    refused = answer("a", status="error", error_code="bad_request", retry_after_s=1.0)
    assert failure(failed(answers=(refused,))).retry_after_s is None


@pytest.mark.parametrize("codes", [("refused",), ("refused", "refused")])
def test_what_everybody_declines_is_a_refusal(codes: tuple[str, ...]) -> None:
    declined = failed(*codes)
    made = completion(declined, model="m", created=1)
    assert is_withheld(declined)
    assert made["choices"][0]["message"]["refusal"] == REFUSAL
    assert made["choices"][0]["finish_reason"] == "content_filter"
    assert not is_withheld(failed("refused", "timeout"))


def test_what_the_winner_thought_is_told_by_both_of_its_names_and_before_the_answer() -> None:
    thought = "ein Gedanke é\n" * 700
    of = outcome(reasoning=thought)
    message = reply(of)["choices"][0]["message"]
    made = streamed(of)
    deltas = [one["choices"][0]["delta"] for one in made if one["choices"]]

    assert message["reasoning"] == message["reasoning_content"] == thought
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == thought
    assert [name for delta in deltas for name in ("reasoning", "content") if delta.get(name)][
        -1
    ] == "content"
    assert max(len(json.dumps(one).encode()) for one in made) < 32 * 1024
    assert "reasoning" not in reply(outcome())["choices"][0]["message"]


def test_no_chunk_makes_a_long_line() -> None:
    long = "é" * 30_000
    call = ToolCall(id="c1", name="f", arguments=json.dumps({"x": "y" * 30_000}))
    made = streamed(
        outcome(content=long, tool_calls=(call,), answers=(answer("a", content=long), answer("b")))
    )
    assert max(len(json.dumps(one, ensure_ascii=False).encode()) for one in made) < 32 * 1024
    deltas = [one["choices"][0]["delta"] for one in made if one["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == long
    calls = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert "".join(part["function"]["arguments"] for part in calls) == call.arguments
    assert [part["index"] for part in calls] == [0] * len(calls)
    assert (calls[0]["id"], calls[0]["function"]["name"], "id" in calls[1]) == ("c1", "f", False)
    told = [one["fusion"]["response"] for one in made if "response" in one.get("fusion", {})]
    assert "".join(one["content"] for one in told if one["index"] == 0) == long
    (whole,) = [one["fusion"] for one in made if "responses" in one.get("fusion", {})]
    assert [one["content"] for one in whole["responses"]] == [None, None]


def test_a_stream_in_one_go() -> None:
    made = streamed(SHAPES["voted"])

    assert [one["choices"] and one["choices"][0]["delta"] for one in made] == [
        {"role": "assistant", "content": ""},
        {"content": "Paris."},
        {},
        [],
    ]
    assert [one["choices"][0]["finish_reason"] for one in made[:-1]] == [None, None, "stop"]
    assert made[2]["fusion"] == fusion_report(SHAPES["voted"], ["w"])
    assert [i for i, one in enumerate(made) if "fusion" in one] == [2]
    assert [i for i, one in enumerate(made) if "usage" in one] == [3]
    assert {(one["id"], one["created"], one["object"]) for one in made} == {
        (f"chatcmpl-{SHAPES['voted'].fusion_id}", CREATED, "chat.completion.chunk")
    }
    assert "usage" not in streamed(SHAPES["voted"], with_usage=False)[-1]


@given(st.text(min_size=1), st.lists(st.integers(0, 50)))
def test_pieces_and_what_follows_are_the_answer(content: str, cuts: list[int]) -> None:
    of = outcome(content=content)
    edges = sorted({0, *(min(cut, len(content)) for cut in cuts)})
    texts = [content[since:until] for since, until in itertools.pairwise(edges)]
    made: list[Any] = [
        piece(of.fusion_id, model="fusion", created=CREATED, text=text, is_first=number == 0)
        for number, text in enumerate(texts)
    ]
    made += streamed(of, "".join(texts), with_usage=False)

    deltas = [one["choices"][0]["delta"] for one in made]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert [number for number, delta in enumerate(deltas) if "role" in delta] == [0]
    assert len({one["id"] for one in made}) == 1


@pytest.mark.parametrize("sent", ["Lyon", "Paris. It is", "paris"])
def test_an_answer_that_does_not_go_on_from_what_was_sent_is_told_at_once(sent: str) -> None:
    with pytest.raises(SupersededError):
        chunks(SHAPES["voted"], model="fusion", created=CREATED, streamed_text=sent, with_usage=False)
