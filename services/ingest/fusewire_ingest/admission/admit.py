"""Admission: turn what a client sent into a prompt, or refuse it with a clear reason. Pure."""

from collections.abc import Mapping, Sequence
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
from fusewire_ingest.admission.refusal import Code, RefusedError, unknown, validate
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
    "resolve_model",
    "validate_submission",
]

MOST_ID_CHARS = 256
MOST_BATCH_CHARS = 128
MOST_MEMBERS = 16
MOST_BIASES = 300
BATCH_ID = r"^[A-Za-z0-9._:-]+$"


class Submission(BaseModel):
    """One prompt as a client writes it.

    It is a body of `POST /v1/fusions`, a JSONL line or a message on `fw.in.<tenant>`.
    """

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
    def _without_empty_texts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for text in value if text)

    @field_validator("tool_choice")
    @classmethod
    def _is_offered(cls, value: str | None, info: ValidationInfo) -> str | None:
        # Tools that are invalid themselves are absent from `info.data`.
        if "tools" not in info.data:
            return value
        return check_choice(value, info.data["tools"])

    @field_validator("response_schema")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value:
            check_schema(value)
        return value


_SAMPLING = set(Sampling.model_fields)


@dataclass(frozen=True)
class PoolRule:
    """The settings of a pool that admission needs."""

    mode: Mode
    residency: Residency
    deadline_s: float
    batch_deadline_s: float
    names: ModelNames = field(default_factory=ModelNames)
    """Spellings of the models that a prompt may name as its members or its judge."""


@dataclass(frozen=True)
class TenantRule:
    """The settings of a tenant that admission needs."""

    residency: Residency = "any"
    pools: Mapping[str, PoolRule] = field(default_factory=dict)
    """The pools that it may use, by name."""


def parse(data: bytes | str, limit: int) -> Submission:
    """Parse a submission.

    Args:
        data: UTF-8 JSON.
        limit: the most bytes it may have.

    Raises:
        RefusedError: it is too large, not JSON, or not a submission. The message never repeats
            the text of the prompt.
    """
    return validate_submission(parse_object(data, limit))


def validate_submission(fields: Mapping[str, Any]) -> Submission:
    """Validate the fields of a JSON object as a submission. Raises RefusedError."""
    submission = validate(Submission, fields)
    if (submission.prompt is None) == (submission.messages is None):
        raise RefusedError("invalid_request", "give either `prompt` or `messages`", "messages")
    return submission


def admit(
    submission: Submission,
    *,
    tenant: str,
    fallback_id: str,
    pools: Mapping[str, PoolRule],
    now: datetime,
    residency: Residency = "any",
    is_streamed: bool = False,
    depth: int = 0,
    deadline_at: datetime | None = None,
) -> Prompt:
    """Turn a submission into a prompt.

    Args:
        submission: what the client wrote.
        tenant: the client's tenant.
        fallback_id: the custom_id where the client gave none.
        pools: the pools that the tenant may use, by name.
        now: the time of acceptance.
        residency: the tenant's.
        is_streamed: whether a client reads the answer while it is written.
        depth: how many Fusewires the prompt has passed through.
        deadline_at: when the outcome is due. None: as the pool says. A `deadline_s` of the
            submission wins over both.

    Raises:
        RefusedError: the pool, mode or a model does not exist, or `fallback_id` cannot be an id.
    """
    pool = _find_pool(submission.pool, pools)
    mode = _parse_mode(submission.mode or pool.mode)
    judge = resolve_model(submission.judge, pool.names, "judge") if submission.judge else None
    members = _resolve_members(submission.members, pool.names)
    _check_logit_bias(submission, members)
    _check_recorded(submission, members)
    custom_id = submission.custom_id or fallback_id
    _check_custom_id(custom_id)
    fusion_id = ids.fusion_id(tenant, submission.batch_id, custom_id)
    if deadline_at is None or submission.deadline_s is not None:
        deadline_at = now + timedelta(
            seconds=submission.deadline_s or _default_deadline_s(submission, pool)
        )
    return Prompt(
        fusion_id=fusion_id,
        tenant=tenant,
        batch_id=submission.batch_id,
        custom_id=custom_id,
        pool=submission.pool,
        mode=mode,
        messages=_messages(submission),
        sampling=Sampling.model_validate(submission.model_dump(include=_SAMPLING)),
        tools=tuple(tool.tool() for tool in submission.tools),
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
        residency=_strictest_residency(residency, pool.residency, submission.residency),
        priority=submission.priority or _default_priority(submission),
        seed=submission.seed if submission.seed is not None else ids.seed(fusion_id),
        submitted_at=now,
        deadline_at=deadline_at,
    )


def _find_pool(name: str, pools: Mapping[str, PoolRule]) -> PoolRule:
    pool = pools.get(name)
    if pool is None:
        raise RefusedError("unknown_pool", unknown("pool", name, pools), "pool")
    return pool


def _parse_mode(name: str) -> Mode:
    for mode in MODES:
        if mode == name:
            return mode
    raise RefusedError("unknown_mode", unknown("mode", name, MODES), "mode")


def _resolve_members(model_names: Sequence[str], names: ModelNames) -> tuple[str, ...]:
    """The configured models that a client names, each once, in the client's order."""
    members = (resolve_model(name, names, "members") for name in model_names)
    return tuple(dict.fromkeys(members))


def _check_logit_bias(submission: Submission, members: Sequence[str]) -> None:
    if submission.logit_bias and len(members) != 1:
        mend = "its token ids are those of one model; name that model alone in `members`"
        raise RefusedError("invalid_request", f"'logit_bias': {mend}", "logit_bias")


def _check_recorded(submission: Submission, members: Sequence[str]) -> None:
    if members and submission.recorded:
        raise RefusedError(
            "invalid_request", "recorded answers stand in for `members`; give one or the other"
        )
    names = [answer.member for answer in submission.recorded]
    if len(set(names)) < len(names):
        raise RefusedError(
            "invalid_request", "a member is recorded twice; give each a name of its own", "recorded"
        )


def _check_custom_id(custom_id: str) -> None:
    check_text(custom_id)
    if not 0 < len(custom_id) <= MOST_ID_CHARS:
        raise RefusedError(
            "invalid_request", f"an id must have 1 to {MOST_ID_CHARS} characters", "custom_id"
        )


def _messages(submission: Submission) -> tuple[Message, ...]:
    if submission.messages:
        return tuple(turn.message() for turn in submission.messages)
    return (Message(role="user", content=submission.prompt or ""),)


def _default_deadline_s(submission: Submission, pool: PoolRule) -> float:
    return pool.batch_deadline_s if submission.batch_id else pool.deadline_s


def _default_priority(submission: Submission) -> Priority:
    return "low" if submission.batch_id else "normal"


def _strictest_residency(*residencies: Residency | None) -> Residency:
    return "edge-only" if "edge-only" in residencies else "any"


def resolve_model(name: str, names: ModelNames, param: str) -> str:
    """Resolve a client's name of a model to the configured one.

    Raises:
        RefusedError: there is no such model; the message lists the nearest names.
    """
    try:
        return names.resolve(name)
    except UnknownModelError as exc:
        nearest = ", ".join(f"'{near_name}'" for near_name in exc.near) or "none"
        raise RefusedError(
            "model_not_found", f"there is no model '{name[:63]}'; nearest: {nearest}", param
        ) from None


def body_hash(prompt: Prompt) -> str:
    """SHA-256 in hex over everything that the client decides; equal for a true repetition."""
    # Without defaults: a field that a later version adds must not make old prompts look changed.
    client_fields = prompt.model_dump_json(
        exclude={"v", "submitted_at", "deadline_at", "is_streamed", "depth", "store_id", "key_id"},
        exclude_defaults=True,
    )
    return ids.digest("body", client_fields).hex()
