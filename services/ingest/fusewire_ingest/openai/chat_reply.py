"""An outcome as a chat completion in OpenAI's form, with a `fusion` object. Pure.

The dicts parse with the models of OpenAI's and OpenRouter's SDKs. Unknown values are null, never 0.
"""

import functools
import json
from collections.abc import Iterator, Sequence

from fusewire import replies
from fusewire.contracts import Outcome
from fusewire.contracts.degraded import DegradedReason
from fusewire_ingest.openai.failures import Body, is_withheld_body
from fusewire_ingest.openai.fusion_report import fusion_report_of

FINGERPRINT = "fusewire"
"""OpenAI's `system_fingerprint`: its schema requires a text, OpenRouter's requires the field."""
REFUSAL = "The models declined to answer this."
PIECE_CHARS = 4_000
"""Characters of text in one chunk of a stream."""
LINE_CHARS = 24_000
"""Characters of JSON in one line of a stream: some clients read lines of 32 KiB at most, and a
character may take more than a byte."""


class SupersededError(Exception):
    """The answer does not begin with the streamed text: another one was chosen since."""


def completion(
    outcome: Outcome, *, model: str, created: int, warnings: Sequence[str] = ()
) -> replies.chat.ChatCompletion:
    """Build the `chat.completion` of an outcome that has an answer.

    Args:
        outcome: with the members' texts if `fusion.responses` is to hold them.
        model: as the client named it.
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
    reason = finish_reason(body)
    reply: replies.chat.ChatCompletion = {
        "id": _id(body["fusion_id"]),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": _message(body),
                "logprobs": None,
                "finish_reason": reason,
                "native_finish_reason": reason,
            }
        ],
        "fusion": fusion_report_of(body, warnings),
    }
    if usage := usage_of(body):
        reply["usage"] = usage
    return reply


def _message(body: Body) -> replies.chat.ChatMessage:
    message: replies.chat.ChatMessage = {
        "role": "assistant",
        "content": body.get("content"),
        "refusal": _refusal(body),
    }
    if reasoning := body.get("reasoning"):
        message["reasoning"] = message["reasoning_content"] = reasoning
    if calls := _tool_calls(body):
        message["tool_calls"] = calls
    return message


def chunks(
    outcome: Outcome,
    *,
    model: str,
    created: int,
    streamed_text: str,
    with_usage: bool,
    warnings: Sequence[str] = (),
) -> Iterator[replies.chat.ChatChunk]:
    """The chunks that end a stream.

    Args:
        outcome: one that has an answer.
        model: as the client named it.
        created: seconds since 1970; the same in all chunks of a stream.
        streamed_text: the text that was sent in pieces before.
        with_usage: whether a chunk of usage ends the stream.
        warnings: for `fusion.warnings` in the chunk with the finish reason.

    Raises:
        SupersededError: the answer does not begin with `streamed_text`. Raised by the call itself,
            before the first chunk.
    """
    body = outcome.model_dump(mode="json")
    # What a client has read is never patched in silence (docs/decisions/0017).
    if not (body["content"] or "").startswith(streamed_text):
        raise SupersededError
    chunk = functools.partial(_chunk, outcome.fusion_id, model, created)
    last_chunks = [chunk(delta) for delta in _deltas(body, streamed_text)]
    report, report_pieces = _split_report(fusion_report_of(body, warnings))
    last_chunks.extend({**chunk(None), "fusion": report_piece} for report_piece in report_pieces)
    last_chunks.append({**chunk({}, finish_reason(body)), "fusion": report})
    if with_usage:
        last_chunks.append({**chunk(None), "usage": usage_of(body)})
    return iter(last_chunks)


def _deltas(body: Body, streamed_text: str) -> Iterator[replies.chat.Delta]:
    """Everything of the message that was not streamed."""
    if not streamed_text:
        yield {"role": "assistant", "content": ""}
    # Each piece of reasoning is sent twice, under two names.
    for text in pieces(body.get("reasoning") or "", PIECE_CHARS // 2):
        yield _reasoning_delta(text)
    for text in pieces((body["content"] or "")[len(streamed_text) :]):
        yield {"content": text}
    for call_delta in _call_deltas(body):
        yield {"tool_calls": [call_delta]}
    if refusal := _refusal(body):
        yield {"refusal": refusal}


def pieces(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """Cut a text into pieces of at most `size` characters, so that no line becomes too long.

    >>> list(pieces("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (text[at : at + size] for at in range(0, len(text), size))


def _reasoning_delta(text: str) -> replies.chat.Delta:
    """Reasoning under OpenRouter's name, and under that of DeepSeek, vLLM and llama.cpp."""
    return {"reasoning": text, "reasoning_content": text}


def _call_deltas(body: Body) -> Iterator[replies.chat.ToolCallDelta]:
    """Tool calls in pieces: the first delta of a call names it, each has a piece of arguments."""
    for number, call in enumerate(_tool_calls(body)):
        first, *rest = list(pieces(call["function"]["arguments"])) or [""]
        function: replies.chat.FunctionDelta = {
            "name": call["function"]["name"],
            "arguments": first,
        }
        yield {"index": number, "id": call["id"], "type": call["type"], "function": function}
        for arguments in rest:
            yield {"index": number, "function": {"arguments": arguments}}


def _split_report(
    report: replies.chat.FusionReport,
) -> tuple[replies.chat.FusionReport, list[replies.chat.FusionPiece]]:
    """Take the members' texts out of a `fusion` object that would make too long a line.

    Returns the shortened object, and the texts in pieces, which are sent before it.
    """
    if len(json.dumps(report)) <= LINE_CHARS:
        return report, []
    texts: list[replies.chat.FusionPiece] = []
    for number, response in enumerate(report["responses"]):
        texts += [
            {
                "outcome_id": report["outcome_id"],
                "response": {"index": number, "model": response["model"], "content": text},
            }
            for text in pieces(response["content"] or "")
        ]
    short: replies.chat.FusionReport = {
        **report,
        "responses": [
            {"model": response["model"], "content": None} for response in report["responses"]
        ],
    }
    if len(json.dumps(short)) > LINE_CHARS:
        short["analysis"] = None
        short["warnings"] = [
            *report["warnings"],
            "the analysis is left out of the stream; read it with GET /v1/fusions",
        ]
    return short, texts


def piece(
    fusion_id: str, *, model: str, created: int, text: str, is_first: bool
) -> replies.chat.ChatChunk:
    """One chunk of an answer that is still being written; the first one has the role too."""
    delta: replies.chat.Delta = {"content": text}
    if is_first:
        delta = {"role": "assistant", "content": text}
    return _chunk(fusion_id, model, created, delta)


def usage_of(body: Body) -> replies.chat.Usage | None:
    """Tokens and cost of all members and the judge; None if not all of them were counted.

    `cost_details` is null if the cost of prompts is unknown: SDKs that read it require both parts.
    """
    usage, cost = body.get("usage", {}), body.get("cost_usd")
    if usage is None:
        return None
    prompt_tokens = usage.get("prompt_tokens", 0)
    completion_tokens = usage.get("completion_tokens", 0)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
        "completion_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
        "cost": cost,
        "cost_details": _cost_details(cost, body.get("cost_prompt_usd")),
    }


def without_null_cost(usage: replies.chat.Usage) -> replies.chat.Usage:
    """For clients that accept a missing cost, and not null."""
    if usage.get("cost") is not None:
        return usage
    costless_usage = usage.copy()
    costless_usage.pop("cost", None)
    return costless_usage


def _cost_details(cost: float | None, prompt_cost: float | None) -> replies.chat.CostDetails | None:
    if cost is None or (cost and prompt_cost is None):
        return None
    prompt_cost = prompt_cost or 0.0
    return {
        "upstream_inference_cost": cost,
        "upstream_inference_prompt_cost": prompt_cost,
        "upstream_inference_completions_cost": max(cost - prompt_cost, 0.0),
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
    """A chunk with a delta of the message; without a choice if `delta` is None."""
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
    return REFUSAL if is_withheld_body(body) else None


def finish_reason(body: Body) -> str:
    """OpenAI's name of the reason why the answer ends."""
    if _refusal(body):
        return "content_filter"
    if body.get("tool_calls"):
        return "tool_calls"
    if DegradedReason("merge_cut_at_length") in body.get("degraded_reasons", ()):
        return "length"
    winner_reason = _winner_finish_reason(body)
    return winner_reason if winner_reason in ("length", "content_filter") else "stop"


def _winner_finish_reason(body: Body) -> str | None:
    winner = body.get("winner")
    if not winner:
        return None
    for answer in body.get("answers", ()):
        if answer["member"] == winner:
            reason: str | None = answer.get("finish_reason")
            return reason
    return None
