"""Admission: from what a client sent to a prompt, or to a clear refusal. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from fusewire import ids
from fusewire.contracts import (
    MODES,
    Gold,
    Message,
    Mode,
    PresetName,
    Priority,
    Prompt,
    RecordedAnswer,
    Residency,
    Sampling,
)
from fusewire_ingest.admission.messages import (
    Choice,
    Tools,
    Turns,
    check_choice,
    check_schema,
)
from fusewire_ingest.admission.model_names import ModelNames, UnknownModelError
from fusewire_ingest.admission.refusal import Code, RefusedError, unknown, validated
from fusewire_ingest.admission.strict_json import check_text, parse_object

__all__ = [
    "Code",
    "PoolRule",
    "RefusedError",
    "Submission",
    "TenantRule",
    "admit",
    "body_hash",
    "parse",
    "parse_object",
    "resolve",
    "submission",
]

MOST_ID_CHARS = 256
MOST_BATCH_CHARS = 128
MOST_MEMBERS = 16
MOST_BIASES = 300
BATCH_ID = r"^[A-Za-z0-9._:-]+$"


class Submission(BaseModel):
    """One prompt as a client writes it: a body of `POST /v1/fusions`, a JSONL line, a message on `fw.in.<tenant>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: str | None = Field(default=None, min_length=1, max_length=MOST_ID_CHARS)
    batch_id: str | None = Field(
        default=None, min_length=1, max_length=MOST_BATCH_CHARS, pattern=BATCH_ID
    )
    pool: str = "default"
    mode: str | None = None
    prompt: str | None = Field(default=None, min_length=1)
    messages: Turns = None
    max_tokens: int | None = Field(default=None, ge=1, le=131_072)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: tuple[str, ...] = Field(default=(), max_length=4)
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=MOST_BIASES)
    tools: Tools = ()
    tool_choice: Choice = None
    parallel_tool_calls: bool = True
    response_schema: dict[str, Any] | None = None
    members: tuple[str, ...] = Field(default=(), max_length=MOST_MEMBERS)
    preset: PresetName | None = None
    judge: str | None = None
    criteria: str | None = Field(default=None, min_length=1, max_length=4000)
    recorded: tuple[RecordedAnswer, ...] = Field(default=(), max_length=16)
    gold: Gold | None = None
    complete: bool = False
    residency: Residency | None = None
    priority: Priority | None = None
    deadline_s: float | None = Field(default=None, gt=0, le=604_800)

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for text in value if text)

    @field_validator("tool_choice")
    @classmethod
    def _offered(cls, value: str | None, info: ValidationInfo) -> str | None:
        return check_choice(value, info.data["tools"]) if "tools" in info.data else value

    @field_validator("response_schema")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value:
            check_schema(value)
        return value


_SAMPLING = set(Sampling.model_fields)


@dataclass(frozen=True)
class PoolRule:
    """What admission must know of a pool."""

    mode: Mode
    residency: Residency
    deadline_s: float
    batch_deadline_s: float
    names: ModelNames = field(default_factory=ModelNames)
    """What clients may call models: those that a prompt may name as its members or its judge."""


@dataclass(frozen=True)
class TenantRule:
    """What admission must know of a tenant."""

    residency: Residency = "any"
    pools: frozenset[str] = frozenset()
    """The pools it may use; empty: all."""


def parse(data: bytes | str, limit: int) -> Submission:
    """Read a submission.

    Args:
        data: UTF-8 JSON.
        limit: the most bytes it may have.

    Raises:
        RefusedError: it is too large, not JSON, or not a submission. The text of the prompt is never repeated.
    """
    return submission(parse_object(data, limit))


def submission(value: Mapping[str, Any]) -> Submission:
    """Read what a JSON object says as a submission. Raises RefusedError."""
    found = validated(Submission, value)
    if (found.prompt is None) == (found.messages is None):
        raise RefusedError("invalid_request", "give either `prompt` or `messages`", "messages")
    return found


def admit(
    submission: Submission,
    *,
    tenant: str,
    fallback_id: str,
    pools: Mapping[str, PoolRule],
    now: datetime,
    rule: TenantRule = TenantRule(),
    is_streamed: bool = False,
    depth: int = 0,
    deadline_at: datetime | None = None,
) -> Prompt:
    """Turn a submission into a prompt.

    Args:
        submission: what the client wrote.
        tenant: who it is.
        fallback_id: the custom_id where the client gave none.
        pools: the pools that exist.
        now: the time of acceptance.
        rule: what the client may.
        is_streamed: whether somebody reads along.
        depth: how many Fusewires it has come through.
        deadline_at: when its outcome is due, where neither the submission nor the pool shall say.

    Raises:
        RefusedError: the pool, mode or a model does not exist, or `fallback_id` cannot be an id.
    """
    allowed = {name: pool for name, pool in pools.items() if not rule.pools or name in rule.pools}
    pool = allowed.get(submission.pool)
    if pool is None:
        raise RefusedError("unknown_pool", unknown("pool", submission.pool, allowed), "pool")
    mode = next((m for m in MODES if m == (submission.mode or pool.mode)), None)
    if mode is None:
        raise RefusedError("unknown_mode", unknown("mode", submission.mode or "", MODES), "mode")
    judge = resolve(submission.judge, pool.names, "judge") if submission.judge else None
    members = tuple(
        dict.fromkeys(resolve(name, pool.names, "members") for name in submission.members)
    )
    if submission.logit_bias and len(members) != 1:
        mend = "its token ids are those of one model; name that model alone in `members`"
        raise RefusedError("invalid_request", f"'logit_bias': {mend}", "logit_bias")
    if members and submission.recorded:
        raise RefusedError(
            "invalid_request", "recorded answers stand in for `members`; give one or the other"
        )
    names = [one.member for one in submission.recorded]
    if len(set(names)) < len(names):
        raise RefusedError(
            "invalid_request", "a member is recorded twice; give each a name of its own", "recorded"
        )
    custom_id = submission.custom_id or fallback_id
    check_text(custom_id)
    if not 0 < len(custom_id) <= MOST_ID_CHARS:
        raise RefusedError(
            "invalid_request", f"an id must have 1 to {MOST_ID_CHARS} characters", "custom_id"
        )
    fusion_id = ids.fusion_id(tenant, submission.batch_id, custom_id)
    default = pool.batch_deadline_s if submission.batch_id else pool.deadline_s
    turns = tuple(turn.message() for turn in submission.messages or ())
    residencies = (rule.residency, pool.residency, submission.residency)
    if deadline_at is None or submission.deadline_s is not None:
        deadline_at = now + timedelta(seconds=submission.deadline_s or default)
    return Prompt(
        fusion_id=fusion_id,
        tenant=tenant,
        batch_id=submission.batch_id,
        custom_id=custom_id,
        pool=submission.pool,
        mode=mode,
        messages=turns or (Message(role="user", content=submission.prompt or ""),),
        sampling=Sampling.model_validate(submission.model_dump(include=_SAMPLING)),
        tools=tuple(one.tool() for one in submission.tools),
        tool_choice=submission.tool_choice or "auto",
        parallel_tool_calls=submission.parallel_tool_calls,
        members=members,
        preset=submission.preset,
        judge=judge,
        criteria=submission.criteria,
        recorded=submission.recorded,
        gold=submission.gold,
        is_streamed=is_streamed,
        depth=depth,
        is_complete=submission.complete,
        residency="edge-only" if "edge-only" in residencies else "any",
        priority=submission.priority or ("low" if submission.batch_id else "normal"),
        seed=submission.seed if submission.seed is not None else ids.seed(fusion_id),
        submitted_at=now,
        deadline_at=deadline_at,
    )


def resolve(name: str, names: ModelNames, param: str) -> str:
    """The configured model that a client means. Raises RefusedError with those that are nearest."""
    try:
        return names.resolve(name)
    except UnknownModelError as exc:
        near = ", ".join(f"'{one}'" for one in exc.near) or "none"
        raise RefusedError(
            "model_not_found", f"there is no model '{name[:63]}'; nearest: {near}", param
        ) from None


def body_hash(prompt: Prompt) -> str:
    """SHA-256 over everything that the client decides; equal for a true repetition."""
    # Without defaults, so that a field which a later version adds does not make old prompts look changed.
    decided = prompt.model_dump_json(
        exclude={"v", "submitted_at", "deadline_at", "is_streamed", "depth", "store_id"},
        exclude_defaults=True,
    )
    return ids.digest("body", decided).hex()
