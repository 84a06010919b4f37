"""Reads and checks a suite, and the answers recorded to it, before anything is asked. Pure."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusewire.contracts import Gold, Prompt, RecordedAnswer
from fusewire_ingest.admission.admit import PoolRule, RefusedError, Submission, admit, parse

MOST_MEMBERS = 16
OURS = ("batch_id", "pool", "mode", "judge", "recorded", "complete", "gold")
"""Keys of a submission that an evaluation sets itself."""


@dataclass(frozen=True)
class Question:
    """A labelled prompt; `body` is its submission without what an evaluation adds."""

    line: int
    custom_id: str
    body: dict[str, Any]
    gold: Gold
    prompt: Prompt | None = None
    """As it would be submitted; None while it is not checked."""


@dataclass(frozen=True)
class LineFault:
    """What is wrong with a line, and how to mend it."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


class _Usage(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Line(BaseModel):
    """A line of a replay. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True)

    custom_id: str = Field(min_length=1)
    model: str = Field(min_length=1)
    content: str | None = None
    error_code: str | None = Field(default=None, min_length=1)
    usage: _Usage | None = None
    latency_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cost_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class MemberReply:
    """A member's reply to a question; None is an unknown figure."""

    recorded: RecordedAnswer
    tokens: int | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None


@dataclass
class Replay:
    """Answers that were recorded earlier."""

    titles: dict[str, str] = field(default_factory=dict)
    """By member, the model's name in the file; in the order of the file."""
    replies: dict[str, list[MemberReply]] = field(default_factory=dict)
    """By custom_id, in the members' order."""


class _LineFaultError(Exception):
    """A line cannot be used; the message says why, and how to mend it."""


def read_suite(
    data: bytes,
    file: str,
    *,
    pool: str,
    mode: str,
    judge: str | None,
    pools: Mapping[str, PoolRule],
    limit: int,
) -> tuple[list[Question], list[LineFault]]:
    """The questions of a suite, each checked as it would be submitted.

    Args:
        data: JSONL.
        file: its name, for the faults.
        pool: the pool that will answer.
        mode: how the answers will be fused.
        judge: the model that will judge, if not the pool's.
        pools: the pools that exist.
        limit: the most bytes of a prompt.

    Returns:
        The good questions, and the faults of other lines.
    """
    questions: list[Question] = []
    first_lines: dict[str, int] = {}
    target = {"pool": pool, "mode": mode} | ({"judge": judge} if judge else {})

    def add_question(number: int, fields: dict[str, Any]) -> None:
        question = _parse_question(number, fields, first_lines)
        try:
            prompt = check(parse(json.dumps(question.body | target), limit), pools)
        except RefusedError as exc:
            raise _LineFaultError(exc.message) from exc
        questions.append(replace(question, prompt=prompt))

    faults = _read_lines(data, file, add_question)
    if not questions and not faults:
        example = '{"custom_id", "prompt", "answer", "match"}'
        faults.append(LineFault(file, 1, f"it holds no questions; write one {example} a line"))
    return questions, faults


def _parse_question(number: int, fields: dict[str, Any], first_lines: dict[str, int]) -> Question:
    """Parse a line of a suite; its custom_id is added to `first_lines`."""
    for key in OURS:
        if key in fields:
            raise _LineFaultError(f"'{key}' is set by the evaluation itself; remove it")
    label = {key: fields.pop(key, None) for key in ("answer", "match")}
    try:
        gold = Gold.model_validate(label)
    except ValidationError as exc:
        raise _LineFaultError(_describe(exc)) from exc
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str):
        raise _LineFaultError(
            "'custom_id' is missing, or no text; give each question one of its own"
        )
    if custom_id in first_lines:
        raise _LineFaultError(
            f"custom_id '{custom_id}' stands in line {first_lines[custom_id]} already; "
            "give each question its own"
        )
    first_lines[custom_id] = number
    return Question(number, custom_id, fields, gold)


def check(submission: Submission, pools: Mapping[str, PoolRule]) -> Prompt:
    """Check a submission as ingest would, and return its prompt.

    Raises:
        RefusedError: ingest would refuse it.
    """
    # The time is arbitrary: no check depends on it.
    return admit(
        submission,
        tenant="default",
        fallback_id="-",
        pools=pools,
        now=datetime(2000, 1, 1, tzinfo=UTC),
    )


def read_replay(
    data: bytes, file: str, questions: Sequence[Question], *, suite: str, models: Mapping[str, str]
) -> tuple[Replay, list[LineFault]]:
    """The answers to these questions that a file holds.

    Args:
        data: JSONL.
        file: its name, for the faults.
        questions: the suite's.
        suite: the suite's file, for the faults.
        models: by member of the pool, its model: a line may name a member instead of a model.

    Returns:
        The answers, and the faults of the file, or of questions without an answer.
    """
    replay = Replay()
    replies: dict[str, dict[str, MemberReply]] = {q.custom_id: {} for q in questions}
    first_lines: dict[tuple[str, str], int] = {}

    def add_reply(number: int, fields: dict[str, Any]) -> None:
        line = _parse_line(fields)
        if line.custom_id not in replies:
            raise _LineFaultError(_unknown_question(line.custom_id, replies, suite))
        member = slug(line.model) or ""
        _add_title(line, member, replay.titles)
        first_line = first_lines.setdefault((line.custom_id, member), number)
        if first_line != number:
            raise _LineFaultError(
                f"'{line.model}' answered '{line.custom_id}' in line {first_line} already; keep one"
            )
        replies[line.custom_id][member] = _reply(line, member, models)

    faults = _read_lines(data, file, add_reply)
    for question in questions:
        by_member = replies[question.custom_id]
        if not by_member:
            what = (
                f"'{question.custom_id}' has no answer in {file}; add one, or remove the question"
            )
            faults.append(LineFault(suite, question.line, what))
        replay.replies[question.custom_id] = _in_order(by_member, replay.titles)
    return replay, faults


def _in_order(by_member: Mapping[str, MemberReply], members: Iterable[str]) -> list[MemberReply]:
    return [by_member[member] for member in members if member in by_member]


def _parse_line(fields: dict[str, Any]) -> _Line:
    """Parse a line of a replay."""
    try:
        line = _Line.model_validate(fields)
    except ValidationError as exc:
        raise _LineFaultError(_describe(exc)) from exc
    if (line.content is None) == (line.error_code is None):
        raise _LineFaultError("give either `content` or, for a failure, `error_code`")
    return line


def _unknown_question(custom_id: str, known_ids: Iterable[str], suite: str) -> str:
    similar_ids = difflib.get_close_matches(custom_id, known_ids, n=1)
    hint = "remove the line, or add the question"
    if similar_ids:
        hint = f"did you mean '{similar_ids[0]}'?"
    return f"custom_id '{custom_id}' is not in {suite}; {hint}"


def _add_title(line: _Line, member: str, titles: dict[str, str]) -> None:
    """Add the model of a line to the members' titles."""
    if not member:
        raise _LineFaultError(
            f"model '{line.model}' has no letter or digit to name a member by; rename it"
        )
    title = titles.setdefault(member, line.model)
    if title != line.model:
        raise _LineFaultError(
            f"model '{line.model}' would have the same member name as '{title}', '{member}'; "
            "rename one"
        )
    if len(titles) > MOST_MEMBERS:
        raise _LineFaultError(
            f"it is the answer of model number {len(titles)}; "
            f"a pool has at most {MOST_MEMBERS} members"
        )


def slug(model: str) -> str | None:
    """The member name for a model; None if nothing of the model's name can be used.

    >>> slug("org/GPT-4.1")
    'org-gpt-4-1'
    """
    return re.sub(r"[^a-z0-9_]+", "-", model.lower()).strip("-_")[:63] or None


def _reply(line: _Line, member: str, models: Mapping[str, str]) -> MemberReply:
    usage = line.usage or _Usage()
    return MemberReply(
        recorded=RecordedAnswer(
            member=member,
            model=models.get(member, member),
            content=line.content,
            error_code=line.error_code,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            latency_ms=line.latency_ms or 0.0,
            cost_usd=line.cost_usd,
        ),
        tokens=usage.prompt_tokens + usage.completion_tokens if line.usage else None,
        latency_ms=line.latency_ms,
        cost_usd=line.cost_usd,
    )


def _read_lines(
    data: bytes, file: str, add: Callable[[int, dict[str, Any]], None]
) -> list[LineFault]:
    """Give each line's number and fields to `add`. Returns the faults of lines."""
    faults = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            add(number, _parse_object(raw))
        except _LineFaultError as exc:
            faults.append(LineFault(file, number, str(exc)))
    return faults


def _parse_object(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw)
    except UnicodeDecodeError as exc:
        raise _LineFaultError("it is not UTF-8; save the file as UTF-8") from exc
    except (ValueError, RecursionError) as exc:
        where = f" at column {exc.colno}" if isinstance(exc, json.JSONDecodeError) else ""
        raise _LineFaultError(f"it is not valid JSON{where}; write one JSON object a line") from exc
    if not isinstance(fields, dict):
        raise _LineFaultError("it is no JSON object; write one a line")
    return fields


def _describe(exc: ValidationError) -> str:
    """The first error of a validation: where, and what."""
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"'{'.'.join(str(part) for part in first['loc'])}': {first['msg']}"
