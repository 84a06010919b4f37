"""Admission: from what a client sent to a prompt, or to a clear refusal. Pure."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fusewire import ids
from fusewire.contracts import MODES, Gold, Message, Mode, Priority, Prompt, Recorded, Residency, Sampling
from fusewire_ingest.openai_shape import Choice, Tools, Turns, check_choice

MOST_DEPTH = 64
"""Levels of nesting; the parser that reads messages gives up at 200, and a round wraps a prompt in some more."""
MOST_ID_CHARS = 256
MOST_BATCH_CHARS = 128
BATCH_ID = r"^[A-Za-z0-9._:-]+$"


class Submission(BaseModel):
    """One prompt as a client writes it: a body of `POST /v1/fusions`, a JSONL line, a message on `fw.in.<tenant>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: str | None = Field(default=None, min_length=1, max_length=MOST_ID_CHARS)
    batch_id: str | None = Field(default=None, min_length=1, max_length=MOST_BATCH_CHARS, pattern=BATCH_ID)
    pool: str = "default"
    mode: str | None = None
    prompt: str | None = Field(default=None, min_length=1)
    messages: Turns = None
    max_tokens: int | None = Field(default=None, ge=1, le=131_072)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = Field(default=(), max_length=4)
    tools: Tools = ()
    tool_choice: Choice = None
    response_schema: dict[str, Any] | None = None
    judge: str | None = None
    criteria: str | None = Field(default=None, min_length=1, max_length=4000)
    recorded: tuple[Recorded, ...] = Field(default=(), max_length=16)
    gold: Gold | None = None
    complete: bool = False
    residency: Residency | None = None
    priority: Priority | None = None
    deadline_s: float | None = Field(default=None, gt=0, le=604_800)

    @field_validator("tool_choice")
    @classmethod
    def _offered(cls, value: str | None, info: ValidationInfo) -> str | None:
        return check_choice(value, info.data["tools"]) if "tools" in info.data else value

    @field_validator("response_schema")
    @classmethod
    def _without_tools(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("tools"):
            raise PydanticCustomError("refused", "it cannot be kept together with `tools`; give one or the other")
        return value


@dataclass(frozen=True)
class PoolRule:
    """What admission must know of a pool."""

    mode: Mode
    residency: Residency
    deadline_s: float
    batch_deadline_s: float
    models: frozenset[str] = frozenset()
    """All that are configured: those which a prompt may name as its judge."""


class RefusedError(Exception):
    """A submission that cannot be accepted: what, why, how to mend it."""

    def __init__(
        self,
        code: Literal[
            "invalid_json",
            "invalid_request",
            "prompt_too_large",
            "unknown_pool",
            "unknown_mode",
            "unknown_model",
            "custom_id_conflict",
        ],
        message: str,
        param: str | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.param = param
        super().__init__(message)


def parse(data: bytes | str, limit: int) -> Submission:
    """Read one JSON object.

    Args:
        data: UTF-8 JSON.
        limit: the most bytes it may have.

    Raises:
        RefusedError: it is too large, not JSON, or not a submission. The text of the prompt is never repeated.
    """
    size = len(data) if isinstance(data, bytes) else len(data.encode())
    if size > limit:
        raise RefusedError(
            "prompt_too_large", f"it has {size} bytes, the limit is {limit}; shorten it or raise limits.prompt_bytes"
        )
    try:
        value = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except RefusedError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError as exc:
        where = f" at column {exc.colno}" if isinstance(exc, json.JSONDecodeError) else ""
        raise RefusedError("invalid_json", f"it is not valid JSON{where}") from None
    if not isinstance(value, dict):
        raise RefusedError("invalid_request", 'it must be a JSON object, such as {"prompt": "…"}')
    _storable(value)
    try:
        submission = Submission.model_validate(value)
    except ValidationError as exc:
        raise _invalid(exc) from None
    if (submission.prompt is None) == (submission.messages is None):
        raise RefusedError("invalid_request", "give either `prompt` or `messages`", "messages")
    return submission


def _no_constant(name: str) -> float:
    raise RefusedError("invalid_json", f"{name} is not valid JSON; use a number or null")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise RefusedError("invalid_json", f"the key '{twice[:40]}' stands twice in one object; keep one")
    return found


def _storable(value: Any, depth: int = 0) -> None:
    """Refuse what a later hop could not read: the bus, the database, or another service's JSON parser."""
    if depth > MOST_DEPTH:
        raise _too_deep()
    if isinstance(value, dict):
        for key, inner in value.items():
            _storable(key)
            _storable(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _storable(inner, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RefusedError("invalid_json", "a number is too large; use one below 1.8e308")
    elif isinstance(value, str):
        if "\x00" in value:
            raise RefusedError("invalid_request", "it holds a NUL character, which no database keeps; remove it")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RefusedError("invalid_json", "it holds half of a surrogate pair; send valid Unicode") from None


def _too_deep() -> RefusedError:
    return RefusedError("invalid_request", f"it is nested more than {MOST_DEPTH} deep; make it flatter")


def _invalid(exc: ValidationError) -> RefusedError:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, Submission.model_fields, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(Submission.model_fields)}"
        return RefusedError("invalid_request", f"'{path}' is not supported; {hint}", path)
    return RefusedError("invalid_request", f"'{path}': {first['msg']}", path)


def admit(
    submission: Submission,
    *,
    tenant: str,
    fallback_id: str,
    pools: Mapping[str, PoolRule],
    now: datetime,
) -> Prompt:
    """Turn a submission into a prompt.

    Args:
        submission: what the client wrote.
        tenant: who it is.
        fallback_id: the custom_id where the client gave none.
        pools: the pools that exist.
        now: the time of acceptance.

    Raises:
        RefusedError: the pool or mode does not exist, or `fallback_id` cannot be an id.
    """
    rule = pools.get(submission.pool)
    if rule is None:
        raise RefusedError("unknown_pool", _unknown("pool", submission.pool, pools), "pool")
    mode = next((m for m in MODES if m == (submission.mode or rule.mode)), None)
    if mode is None:
        raise RefusedError("unknown_mode", _unknown("mode", submission.mode or "", MODES), "mode")
    if submission.judge is not None and submission.judge not in rule.models:
        raise RefusedError("unknown_model", _unknown("model", submission.judge, rule.models), "judge")
    names = [one.member for one in submission.recorded]
    if len(set(names)) < len(names):
        raise RefusedError("invalid_request", "a member is recorded twice; give each a name of its own", "recorded")
    custom_id = submission.custom_id or fallback_id
    _storable(custom_id)
    if not 0 < len(custom_id) <= MOST_ID_CHARS:
        raise RefusedError("invalid_request", f"an id must have 1 to {MOST_ID_CHARS} characters", "custom_id")
    fusion_id = ids.fusion_id(tenant, submission.batch_id, custom_id)
    default = rule.batch_deadline_s if submission.batch_id else rule.deadline_s
    turns = tuple(turn.message() for turn in submission.messages or ())
    tightest: Residency = "edge-only" if "edge-only" in (rule.residency, submission.residency) else "any"
    return Prompt(
        fusion_id=fusion_id,
        tenant=tenant,
        batch_id=submission.batch_id,
        custom_id=custom_id,
        pool=submission.pool,
        mode=mode,
        messages=turns or (Message(role="user", content=submission.prompt or ""),),
        sampling=Sampling(
            max_tokens=submission.max_tokens,
            temperature=submission.temperature,
            top_p=submission.top_p,
            seed=submission.seed,
            stop=submission.stop,
            response_schema=submission.response_schema,
        ),
        tools=tuple(one.tool() for one in submission.tools),
        tool_choice=submission.tool_choice or "auto",
        judge=submission.judge,
        criteria=submission.criteria,
        recorded=submission.recorded,
        gold=submission.gold,
        is_complete=submission.complete,
        residency=tightest,
        priority=submission.priority or ("low" if submission.batch_id else "normal"),
        seed=submission.seed if submission.seed is not None else ids.seed(fusion_id),
        submitted_at=now,
        deadline_at=now + timedelta(seconds=submission.deadline_s or default),
    )


def body_hash(prompt: Prompt) -> str:
    """SHA-256 over everything that the client decides; equal for a true repetition."""
    # Without defaults, so that a field which a later version adds does not make old prompts look changed.
    decided = prompt.model_dump_json(exclude={"v", "submitted_at", "deadline_at"}, exclude_defaults=True)
    return ids.digest("body", decided).hex()


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"there is no {kind} '{name[:63]}'; {hint}known: {', '.join(names) or 'none'}"
