"""Recorded answers of a prompt, turned into candidates as if members had just been called. Pure."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import cast, get_args

from fusewire import ids
from fusewire.contracts import CallFailure, Candidate, ErrorCode, Plan, Prompt, Usage

RECORDED = "recorded"
"""The provider of a candidate that came with the prompt, not from a call."""


def candidates(prompt: Prompt, plan: Plan, now: datetime) -> Iterator[Candidate]:
    """Yield the recorded answers of a prompt as candidates of round 0 that finished at `now`."""
    tiers = {m.name: m.tier for m in plan.members}
    for answer in prompt.recorded:
        failure = None
        if answer.error_code or (answer.content is None and not answer.tool_calls):
            failure = CallFailure(
                code=_error_code(answer.error_code), message="as recorded", retryable=False
            )
        yield Candidate(
            task_id=ids.task_id(prompt.fusion_id, 0, answer.member),
            fusion_id=prompt.fusion_id,
            round=0,
            call=answer.member,
            member=answer.member,
            model=answer.model,
            tier=tiers[answer.member],
            provider=RECORDED,
            content=None if failure else answer.content,
            tool_calls=() if failure else answer.tool_calls,
            error=failure,
            finish_reason=None if failure else "stop",
            usage=Usage(
                prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
            ),
            cost_usd=answer.cost_usd,
            attempts=0,
            started_at=now - timedelta(milliseconds=answer.latency_ms),
            finished_at=now,
        )


def _error_code(code: str | None) -> ErrorCode:
    """The recorded code if it is one of Fusewire's, else `server_error`."""
    return cast("ErrorCode", code) if code in get_args(ErrorCode) else "server_error"
