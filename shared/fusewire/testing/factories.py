"""Messages with sensible defaults, and a clock that stands still, for tests and benchmarks only."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fusewire import ids
from fusewire.contracts import (
    Answer,
    Call,
    CallFailure,
    Candidate,
    Message,
    Outcome,
    Plan,
    PlannedJudge,
    PlannedMember,
    Prompt,
    Round,
    Sampling,
    Task,
    Usage,
)

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""When every made prompt was submitted."""

OPEN_ANSWERS = {
    "a": "Paris is the capital of France, on the river Seine.",
    "b": "France has its capital in the city of Lyon, they say.",
    "c": "Nobody can tell, since borders move all the time.",
}
"""By member: texts that are no closed answers and unlike each other."""


class FakeClock:
    """A clock that moves only when it is told to."""

    def __init__(self, now: datetime = T0) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> datetime:
        """Move on, and tell the new time."""
        self.now += timedelta(seconds=seconds)
        return self.now


def make_prompt(
    text: str = "What is the capital of France?", *, members: Iterable[str] = (), **overrides: Any
) -> Prompt:
    """A prompt to the pool `default`, submitted at T0, due a minute later."""
    tenant, batch = overrides.get("tenant", "default"), overrides.get("batch_id")
    custom_id = overrides.get("custom_id", "one")
    submitted_at = overrides.get("submitted_at", T0)
    fusion_id = ids.fusion_id(tenant, batch, custom_id)
    fields: dict[str, Any] = {
        "fusion_id": fusion_id,
        "tenant": tenant,
        "custom_id": custom_id,
        "pool": "default",
        "mode": "best-of",
        "messages": (Message(role="user", content=text),),
        "members": tuple(members),
        "residency": "any",
        "priority": "normal",
        "seed": 7,
        "submitted_at": submitted_at,
        "deadline_at": submitted_at + timedelta(seconds=60),
    }
    return Prompt(**{**fields, **overrides})


def make_member(name: str, weight: float = 1.0, **overrides: Any) -> PlannedMember:
    """A hosted member whose model is `m-<name>`."""
    fields = {
        "name": name,
        "model": f"m-{name}",
        "tier": "remote",
        "family": name,
        "weight": weight,
    }
    return PlannedMember(**{**fields, **overrides})


JUDGE = PlannedJudge(model="m-judge", tier="remote", family="judge")


def make_plan(
    prompt: Prompt | None = None, members: Iterable[str | PlannedMember] = "abc", **overrides: Any
) -> Plan:
    """The plan of a prompt with members `a`, `b`, `c` and a judge.

    The panel has 45 of the 60 seconds.
    """
    prompt = prompt or make_prompt()
    fields: dict[str, Any] = {
        "fusion_id": prompt.fusion_id,
        "tenant": prompt.tenant,
        "pool": prompt.pool,
        "mode": prompt.mode,
        "members": tuple(m if isinstance(m, PlannedMember) else make_member(m) for m in members),
        "judge": JUDGE,
        "quorum": 0.67,
        "debate_rounds": 2,
        "residency": prompt.residency,
        "priority": prompt.priority,
        "seed": prompt.seed,
        "submitted_at": prompt.submitted_at,
        "planned_at": prompt.submitted_at,
        "panel_deadline_at": prompt.submitted_at
        + 0.75 * (prompt.deadline_at - prompt.submitted_at),
        "deadline_at": prompt.deadline_at,
        "config_hash": "0123456789ab",
    }
    return Plan(**{**fields, **overrides})


def make_task(prompt: Prompt | None = None, member: str = "a", **overrides: Any) -> Task:
    """The answer task of one member."""
    prompt = prompt or make_prompt()
    round_, call = overrides.get("round", 0), overrides.get("call", member)
    fields: dict[str, Any] = {
        "task_id": ids.task_id(prompt.fusion_id, round_, call),
        "fusion_id": prompt.fusion_id,
        "round": round_,
        "call": call,
        "kind": "answer",
        "member": member,
        "model": f"m-{member}",
        "tier": "remote",
        "tenant": prompt.tenant,
        "messages": prompt.messages,
        "sampling": prompt.sampling,
        "tools": prompt.tools,
        "tool_choice": prompt.tool_choice,
        "depth": prompt.depth,
        "residency": prompt.residency,
        "priority": prompt.priority,
        "deadline_at": prompt.deadline_at,
    }
    return Task(**{**fields, **overrides})


def make_candidate(
    content: str | None = "Paris.",
    call: str = "a",
    *,
    prompt: Prompt | None = None,
    fails: str | None = None,
    **overrides: Any,
) -> Candidate:
    """What came of one call after a second: an answer, or with `fails` an error of that code."""
    prompt = prompt or make_prompt()
    round_ = overrides.get("round", 0)
    fields: dict[str, Any] = {
        "task_id": ids.task_id(prompt.fusion_id, round_, call),
        "fusion_id": prompt.fusion_id,
        "round": round_,
        "call": call,
        "member": call,
        "model": f"m-{call}",
        "tier": "remote",
        "provider": "openai",
        "content": None if fails else content,
        "error": CallFailure.model_validate(
            {"code": fails, "message": "told to", "retryable": False}
        )
        if fails
        else None,
        "finish_reason": None if fails else "tool_calls" if overrides.get("tool_calls") else "stop",
        "usage": {} if fails else {"prompt_tokens": 10, "completion_tokens": 2},
        "cost_usd": None if fails else 0.001,
        "price_version": None if fails else "test-1",
        "started_at": prompt.submitted_at,
        "finished_at": prompt.submitted_at + timedelta(seconds=1),
    }
    return Candidate(**{**fields, **overrides})


def make_round(
    prompt: Prompt | None = None, calls: Sequence[Call] | None = None, **overrides: Any
) -> Round:
    """The first round of a prompt: unless told otherwise, one call of the judge."""
    prompt = prompt or make_prompt()
    verdict = Call(
        name="verdict",
        kind="verdict",
        model=JUDGE.model,
        messages=(Message(role="user", content="Which is best?"),),
        sampling=Sampling(temperature=0),
    )
    fields: dict[str, Any] = {
        "fusion_id": prompt.fusion_id,
        "round": 1,
        "tenant": prompt.tenant,
        "pool": prompt.pool,
        "calls": tuple(calls) if calls is not None else (verdict,),
        "residency": prompt.residency,
        "priority": prompt.priority,
        "seed": prompt.seed,
        "depth": prompt.depth,
        "deadline_at": prompt.deadline_at,
    }
    return Round(**{**fields, **overrides})


def make_outcome(prompt: Prompt | None = None, **overrides: Any) -> Outcome:
    """A voted outcome, two seconds after the prompt."""
    prompt = prompt or make_prompt()
    fields: dict[str, Any] = {
        "fusion_id": prompt.fusion_id,
        "status": "voted",
        "is_degraded": False,
        "content": "Paris.",
        "tenant": prompt.tenant,
        "batch_id": prompt.batch_id,
        "custom_id": prompt.custom_id,
        "pool": prompt.pool,
        "mode": prompt.mode,
        "winner": "a",
        "reason": "vote, 2 of 2 say the same",
        "agreement": 1.0,
        "cost_usd": 0.002,
        "submitted_at": prompt.submitted_at,
        "finished_at": prompt.submitted_at + timedelta(seconds=2),
    }
    return Outcome(**{**fields, **overrides})


def known_usage(calls: Candidate | Answer | Outcome) -> Usage:
    """What calls used, where it is known."""
    assert calls.usage is not None
    return calls.usage
