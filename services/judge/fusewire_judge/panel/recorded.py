"""Recorded answers as the candidates they once were. Pure."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import cast, get_args

from fusewire import ids
from fusewire.contracts import CallFailure, Candidate, ErrorCode, Plan, Prompt, Usage

RECORDED = "recorded"
"""The provider of a candidate that nobody called for."""


def candidates(prompt: Prompt, plan: Plan, now: datetime) -> Iterator[Candidate]:
    """What the recorded answers of a prompt are to the judge, as if they had just come."""
    tiers = {m.name: m.tier for m in plan.members}
    for one in prompt.recorded:
        failure = None
        if one.error_code or (one.content is None and not one.tool_calls):
            failure = CallFailure(
                code=_code(one.error_code), message="as recorded", retryable=False
            )
        yield Candidate(
            task_id=ids.task_id(prompt.fusion_id, 0, one.member),
            fusion_id=prompt.fusion_id,
            round=0,
            call=one.member,
            member=one.member,
            model=one.model,
            tier=tiers[one.member],
            provider=RECORDED,
            content=None if failure else one.content,
            tool_calls=() if failure else one.tool_calls,
            error=failure,
            finish_reason=None if failure else "stop",
            usage=Usage(prompt_tokens=one.prompt_tokens, completion_tokens=one.completion_tokens),
            cost_usd=one.cost_usd,
            attempts=0,
            started_at=now - timedelta(milliseconds=one.latency_ms),
            finished_at=now,
        )


def _code(recorded: str | None) -> ErrorCode:
    """The code that was recorded, where it is one of ours."""
    return cast("ErrorCode", recorded) if recorded in get_args(ErrorCode) else "server_error"
