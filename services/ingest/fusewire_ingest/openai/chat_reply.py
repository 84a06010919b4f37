"""An outcome as a chat completion: OpenAI's shape, and a `fusion` object with OpenRouter's names. Pure.

The dicts parse with the models of both SDKs. What is not known is null, never 0.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusewire import replies
from fusewire.contracts import Outcome

Body = Mapping[str, Any]
"""An outcome as JSON has it."""

_JUDGE_REASONS = {
    "empty": "judge_empty_completion",
    "schema_mismatch": "judge_schema_mismatch",
    "not_json": "judge_not_valid_json",
    "ambiguous": "judge_not_valid_json",
    "too_long": "judge_not_valid_json",
    "picked_control": None,
    "one_order": None,
}
"""By what a judge did wrong. Of anything else, no reply came; two things have no name at OpenRouter."""
_MEMBER_STATUS = {
    "rate_limited": 429,
    "insufficient_quota": 402,
    "unauthorized": 401,
    "model_not_found": 404,
}
"""By error code, where it stands for one status."""
_RETRYABLE = {
    "rate_limited",
    "server_error",
    "connect_error",
    "timeout",
    "truncated",
    "deadline_exceeded",
    "engine_failed",
    "cancelled",
}
_FAILED = 424
"""For what failed behind the server and has its outcome: many clients send a request again by themselves after any
status of 500 and more, and would buy it again."""
_ALL_ALIKE = {
    "rate_limited": (429, "rate_limited", "try again later, or add members of other providers"),
    "insufficient_quota": (
        402,
        "insufficient_credits",
        "the provider's account has no credit left; top it up",
    ),
    "context_length_exceeded": (400, "context_length_exceeded", "shorten the messages"),
    "bad_request": (
        400,
        "bad_request",
        "the providers refuse it as it stands; see each member's code",
    ),
    "model_not_found": (
        404,
        "model_not_found",
        "no provider knows its model; mend `model` in the configuration",
    ),
    "unauthorized": (
        _FAILED,
        "provider_key_refused",
        "the providers refuse this Fusewire's keys; mend them",
    ),
}
"""What a failure is called where every member failed in one way, and what to do."""
_WITHHELD = "refused"
"""The code of members that declined to answer."""
FINGERPRINT = "fusewire"
"""Where OpenAI names the configuration of its servers: its schema wants a text, OpenRouter's the field."""
REFUSAL = "The models declined to answer this."


@dataclass(frozen=True)
class Failure:
    """An outcome without an answer, as HTTP tells it.

    Attributes:
        status: of the response.
        code: OpenAI's, or a word of ours.
        message: what, and how to mend it.
        retry_after_s: when it is worth to ask again; None where that is not known, or never.
        failed: the members, as `fusion.failed_models`.
    """

    status: int
    code: str
    message: str
    retry_after_s: float | None = None
    failed: tuple[replies.chat.FailedModel, ...] = ()


PIECE_CHARS = 4_000
LINE_CHARS = 24_000
"""Of JSON: some clients read lines of 32 KiB at most, and a character may take more than a byte."""


class SupersededError(Exception):
    """The answer does not begin with what was streamed: another one was chosen since."""


def completion(
    outcome: Outcome, *, model: str, created: int, warnings: Sequence[str] = ()
) -> replies.chat.ChatCompletion:
    """The `chat.completion` of an outcome that has an answer.

    Args:
        outcome: with the members' texts, where they shall be in `fusion.responses`.
        model: as the client asked.
        created: seconds since 1970.
        warnings: for `fusion.warnings`.
    """
    return completion_of(
        outcome.model_dump(mode="json"), model=model, created=created, warnings=warnings
    )


def completion_of(
    body: Body, *, model: str, created: int, warnings: Sequence[str] = ()
) -> replies.chat.ChatCompletion:
    """As `completion`, of an outcome's JSON."""
    calls = _tool_calls(body)
    message: replies.chat.ChatMessage = {
        "role": "assistant",
        "content": body.get("content"),
        "refusal": _refusal(body),
    }
    if thought := body.get("reasoning"):
        message["reasoning"] = message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    reason = finish_reason(body)
    found: replies.chat.ChatCompletion = {
        "id": _id(body["fusion_id"]),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": reason,
                "native_finish_reason": reason,
            }
        ],
        "fusion": fusion_of(body, warnings),
    }
    if used := usage_of(body):
        found["usage"] = used
    return found


def chunks(
    outcome: Outcome,
    *,
    model: str,
    created: int,
    sent: str,
    with_usage: bool,
    warnings: Sequence[str] = (),
) -> Iterator[replies.chat.ChatChunk]:
    """The chunks that are still to be sent.

    Args:
        outcome: one that has an answer.
        model: as the client asked.
        created: seconds since 1970; the same in all chunks of a stream.
        sent: the text that went out in pieces.
        with_usage: whether a chunk of usage ends the stream.
        warnings: for `fusion.warnings` in the chunk with the finish reason.

    Raises:
        SupersededError: at once, where the answer does not begin with `sent`.
    """
    body = outcome.model_dump(mode="json")
    content = body["content"] or ""
    if not content.startswith(sent):
        raise SupersededError
    chunk = functools.partial(_chunk, outcome.fusion_id, model, created)
    deltas: list[replies.chat.Delta] = [] if sent else [{"role": "assistant", "content": ""}]
    deltas += [_thought(one) for one in pieces(body.get("reasoning") or "", PIECE_CHARS // 2)]
    deltas += [{"content": one} for one in pieces(content[len(sent) :])]
    deltas += [{"tool_calls": [part]} for part in _call_parts(body)]
    deltas += [{"refusal": refusal}] if (refusal := _refusal(body)) else []
    found = [chunk(delta) for delta in deltas]
    told, apart = _told_apart(fusion_of(body, warnings))
    found.extend({**chunk(None), "fusion": one} for one in apart)
    found.append({**chunk({}, finish_reason(body)), "fusion": told})
    if with_usage:
        found.append({**chunk(None), "usage": usage_of(body)})
    return iter(found)


def pieces(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """A text in pieces, none of which makes too long a line."""
    return (text[at : at + size] for at in range(0, len(text), size))


def _thought(text: str) -> replies.chat.Delta:
    """What was thought, by OpenRouter's name and by the one of DeepSeek, vLLM and llama.cpp."""
    return {"reasoning": text, "reasoning_content": text}


def _call_parts(body: Body) -> Iterator[replies.chat.ToolCallDelta]:
    """The calls as deltas: the first of each names it, and all have a piece of its arguments."""
    for number, call in enumerate(_tool_calls(body)):
        first, *rest = list(pieces(call["function"]["arguments"])) or [""]
        function: replies.chat.FunctionDelta = {
            "name": call["function"]["name"],
            "arguments": first,
        }
        yield {"index": number, "id": call["id"], "type": call["type"], "function": function}
        for one in rest:
            yield {"index": number, "function": {"arguments": one}}


def _told_apart(
    told: replies.chat.FusionReport,
) -> tuple[replies.chat.FusionReport, list[replies.chat.FusionPiece]]:
    """The `fusion` object, and what is told before it in pieces because it would make too long a line."""
    if len(json.dumps(told)) <= LINE_CHARS:
        return told, []
    apart: list[replies.chat.FusionPiece] = [
        {
            "outcome_id": told["outcome_id"],
            "response": {"index": number, "model": one["model"], "content": text},
        }
        for number, one in enumerate(told["responses"])
        for text in pieces(one["content"] or "")
    ]
    short: replies.chat.FusionReport = {
        **told,
        "responses": [{"model": one["model"], "content": None} for one in told["responses"]],
    }
    if len(json.dumps(short)) > LINE_CHARS:
        short["analysis"] = None
        short["warnings"] = [
            *told["warnings"],
            "the analysis is left out of the stream; read it with GET /v1/fusions",
        ]
    return short, apart


def piece(
    fusion_id: str, *, model: str, created: int, text: str, is_first: bool
) -> replies.chat.ChatChunk:
    """One chunk of an answer that is still being written; the first one names the role too."""
    delta: replies.chat.Delta = (
        {"role": "assistant", "content": text} if is_first else {"content": text}
    )
    return _chunk(fusion_id, model, created, delta)


def failure(outcome: Outcome) -> Failure:
    """What became of an outcome that has no answer."""
    return failure_of(outcome.model_dump(mode="json"))


def failure_of(body: Body) -> Failure:
    """As `failure`, of an outcome's JSON."""
    status, code, message = _failed_with(body)
    waits = [
        a["retry_after_s"] for a in body.get("answers", ()) if a.get("retry_after_s") is not None
    ]
    failed = tuple(
        _failed(a) for a in body.get("answers", ()) if a["status"] in ("error", "missing")
    )
    return Failure(
        status, code, message, min(waits, default=None) if status == 429 else None, failed
    )


def _failed_with(body: Body) -> tuple[int, str, str]:
    why = body.get("error") or "there is no answer"
    if body["status"] == "cancelled":
        return 409, "cancelled", "it was cancelled before there was an answer"
    if body["status"] == "expired":
        return 504, "deadline_exceeded", f"{why}; try again, or give it more time"
    codes = _codes(body)
    if len(codes) == 1 and (alike := _ALL_ALIKE.get(next(iter(codes)))):
        status, code, advice = alike
        return status, code, f"{why}; {advice}"
    if not body.get("answers"):
        return 400, "no_member_available", f"{why}; ask for other members or another pool"
    if not codes:
        return _FAILED, "invalid_tool_calls", f"{why}; try again, or mend the tools"
    return _FAILED, "all_panels_failed", f"{why}; see each member's error"


def is_withheld(outcome: Outcome) -> bool:
    """Whether there is no answer because every member declined: that is an answer too, to OpenAI's clients."""
    return outcome.status == "failed" and {
        a.error_code for a in outcome.answers if a.error_code
    } == {_WITHHELD}


def is_retryable(body: Body) -> bool:
    """Whether the same prompt, submitted again, might be answered; of an outcome's JSON that has no answer."""
    if body["status"] in ("expired", "cancelled"):
        return True
    codes = _codes(body)
    return bool(body.get("answers")) and (not codes or bool(codes & _RETRYABLE))


def fusion(outcome: Outcome, warnings: Sequence[str] = ()) -> replies.chat.FusionReport:
    """How an outcome came to be. What is degraded stands first."""
    return fusion_of(outcome.model_dump(mode="json"), warnings)


def fusion_of(body: Body, warnings: Sequence[str] = ()) -> replies.chat.FusionReport:
    """As `fusion`, of an outcome's JSON; it parses as OpenRouter's `openrouter:fusion` output item."""
    answers = body.get("answers", [])
    responses: list[replies.chat.MemberText] = [
        {"model": a["model"], "content": a["content"]} for a in answers if _has_text(a)
    ]
    failed = [_failed(a) for a in answers if a["status"] in ("error", "missing")]
    is_answered = body["status"] in ("fused", "voted", "single")
    found: replies.chat.FusionReport = {
        "is_degraded": body["is_degraded"],
        "degraded_reasons": list(body.get("degraded_reasons", ())),
        "type": "openrouter:fusion",
        "status": "completed" if is_answered else "incomplete",
        "outcome_id": body["fusion_id"],
        "outcome_status": body["status"],
        "strategy": body["mode"],
        "pool": body["pool"],
        "winner": body.get("winner"),
        "reason": body.get("reason"),
        "judge_model": body.get("judge_model"),
        "answer_kind": body.get("answer_kind"),
        "closed_by": body.get("closed_by"),
        "agreement": body.get("agreement"),
        "cost_usd": body.get("cost_usd"),
        "members": [_member(a) for a in answers],
        "warnings": list(warnings),
        "responses": responses,
        "failed_models": failed,
        "failure_reason": _failure_reason(body, is_answered=is_answered),
    }
    if body.get("analysis") is not None:
        found["analysis"] = body["analysis"]
    if body.get("error"):
        found["error"] = body["error"]
    return found


def usage_of(body: Body) -> replies.chat.Usage | None:
    """Tokens and cost of all members and the judge; None where not all were counted.

    `cost_details` is null where what prompts cost is not known apart: the SDKs that read it want both.
    """
    used, cost = body.get("usage", {}), body.get("cost_usd")
    if used is None:
        return None
    asked, answered = used.get("prompt_tokens", 0), used.get("completion_tokens", 0)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": used.get("cached_tokens", 0)},
        "completion_tokens_details": {"reasoning_tokens": used.get("reasoning_tokens", 0)},
        "cost": cost,
        "cost_details": _cost_details(cost, body.get("cost_prompt_usd")),
    }


def without_null_cost(usage: replies.chat.Usage) -> replies.chat.Usage:
    """For clients that may be told no cost, but not that it is unknown."""
    if usage.get("cost") is not None:
        return usage
    found = usage.copy()
    found.pop("cost", None)
    return found


def _cost_details(cost: float | None, of_prompts: float | None) -> replies.chat.CostDetails | None:
    if cost is None or (cost and of_prompts is None):
        return None
    return {
        "upstream_inference_cost": cost,
        "upstream_inference_prompt_cost": of_prompts or 0.0,
        "upstream_inference_completions_cost": max(cost - (of_prompts or 0.0), 0.0),
    }


def _id(fusion_id: str) -> str:
    return f"chatcmpl-{fusion_id}"


def _chunk(
    fusion_id: str,
    model: str,
    created: int,
    delta: replies.chat.Delta | None,
    finish_reason: str | None = None,
) -> replies.chat.ChatChunk:
    """A chunk with a piece of the answer, or with none."""
    choice: replies.chat.ChunkChoice = {
        "index": 0,
        "delta": delta or {},
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    return {
        "id": _id(fusion_id),
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [] if delta is None else [choice],
    }


def _tool_calls(body: Body) -> list[replies.chat.ChatToolCall]:
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for call in body.get("tool_calls", ())
    ]


def _refusal(body: Body) -> str | None:
    return REFUSAL if body["status"] == "failed" and _codes(body) == {_WITHHELD} else None


def finish_reason(body: Body) -> str:
    """Why the answer ends, in OpenAI's words."""
    if _refusal(body):
        return "content_filter"
    if body.get("tool_calls"):
        return "tool_calls"
    if "merge_cut_at_length" in body.get("degraded_reasons", ()):
        return "length"
    winner = body.get("winner")
    of_winner = next(
        (
            a.get("finish_reason")
            for a in body.get("answers", ())
            if winner and a["member"] == winner
        ),
        None,
    )
    return of_winner if of_winner in ("length", "content_filter") else "stop"


def _has_text(answer: Body) -> bool:
    return answer["status"] == "ok" and answer.get("content") is not None


def _failed(answer: Body) -> replies.chat.FailedModel:
    error = answer.get("error_code") or "missing"
    return {
        "model": answer["model"],
        "error": error,
        "status_code": answer.get("error_status") or _MEMBER_STATUS.get(error),
        "provider_code": answer.get("provider_code"),
        "param": answer.get("provider_param"),
    }


def _member(answer: Body) -> replies.chat.FusionMember:
    used = answer.get("usage") or {}
    return {
        "member": answer["member"],
        "model": answer["model"],
        "status": answer["status"],
        "error_code": answer.get("error_code"),
        "prompt_tokens": used.get("prompt_tokens"),
        "completion_tokens": used.get("completion_tokens"),
        "cost_usd": answer.get("cost_usd"),
        "latency_ms": answer.get("latency_ms"),
    }


def _codes(body: Body) -> set[str]:
    """The errors that members failed with."""
    return {a["error_code"] for a in body.get("answers", ()) if a.get("error_code")}


def _failure_reason(body: Body, *, is_answered: bool) -> str | None:
    if not is_answered:
        code = failure_of(body).code
        return (
            code
            if code in ("rate_limited", "insufficient_credits", "cancelled")
            else "all_panels_failed"
        )
    faults = (
        r.removeprefix("judge_failed:")
        for r in body.get("degraded_reasons", ())
        if r.startswith("judge_failed:")
    )
    fault = next(faults, None)
    return _JUDGE_REASONS.get(fault, "judge_upstream_error") if fault is not None else None
