"""A suite and what was answered to it earlier: read and checked whole, before anything is asked. Pure."""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusewire.contracts import Gold, RecordedAnswer
from fusewire_ingest.admission.admit import PoolRule, RefusedError, Submission, admit, parse

MOST_MEMBERS = 16
OURS = ("batch_id", "pool", "mode", "judge", "recorded", "complete", "gold")
"""Keys of a submission that an evaluation sets itself."""


@dataclass(frozen=True)
class Question:
    """A labelled prompt: `body` is its submission, without what each run of it adds."""

    line: int
    custom_id: str
    body: dict[str, Any]
    gold: Gold


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
    """A line of a replay. Keys that it does not know are other people's notes."""

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
    """What one member said to one question; None where a figure is not known."""

    recorded: RecordedAnswer
    tokens: int | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None


@dataclass
class Replay:
    """What was answered earlier."""

    titles: dict[str, str] = field(default_factory=dict)
    """By member, the name that the file gives it, in the file's order."""
    replies: dict[str, list[MemberReply]] = field(default_factory=dict)
    """By custom_id, in the members' order."""


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
    """The questions of a suite, as they would be submitted, and what is wrong with others.

    Args:
        data: JSONL.
        file: its name, for the faults.
        pool: whom they will be given to.
        mode: how they will be fused.
        judge: the model that will judge, if another than the pool's.
        pools: the pools that exist.
        limit: the most bytes of a prompt.
    """
    questions: list[Question] = []
    faults: list[LineFault] = []
    seen: dict[str, int] = {}

    def take(number: int, value: dict[str, Any]) -> str | None:
        if ours := next((key for key in OURS if key in value), None):
            return f"'{ours}' is set by the evaluation itself; remove it"
        try:
            gold = Gold.model_validate({key: value.pop(key, None) for key in ("answer", "match")})
        except ValidationError as exc:
            return _invalid(exc)
        custom_id = value.get("custom_id")
        if not isinstance(custom_id, str):
            return "'custom_id' is missing, or no text; give each question one of its own"
        if custom_id in seen:
            return f"custom_id '{custom_id}' stands in line {seen[custom_id]} already; give each question its own"
        seen[custom_id] = number
        try:
            asked = {**value, "pool": pool, "mode": mode, **({"judge": judge} if judge else {})}
            check(parse(json.dumps(asked), limit), pools)
        except RefusedError as exc:
            return exc.message
        questions.append(Question(number, custom_id, value, gold))
        return None

    faults += _each(data, file, take)
    if not questions and not faults:
        faults.append(
            LineFault(
                file,
                1,
                'it holds no questions; write one {"custom_id", "prompt", "answer", "match"} a line',
            )
        )
    return questions, faults


def check(submission: Submission, pools: Mapping[str, PoolRule]) -> None:
    """Raises RefusedError where the door would refuse it."""
    # The time decides nothing here.
    admit(
        submission,
        tenant="default",
        fallback_id="-",
        pools=pools,
        now=datetime(2000, 1, 1, tzinfo=UTC),
    )


def read_replay(
    data: bytes, file: str, questions: Sequence[Question], *, suite: str, models: Mapping[str, str]
) -> tuple[Replay, list[LineFault]]:
    """What a file says was answered to these questions, and what is wrong with it.

    Args:
        data: JSONL.
        file: its name, for the faults.
        questions: the suite's.
        suite: the suite's file, for the faults.
        models: members of the pool, and their models: a line may name a member in place of a model.
    """
    replay = Replay()
    said: dict[str, dict[str, MemberReply]] = {q.custom_id: {} for q in questions}
    seen: dict[tuple[str, str], int] = {}

    def take(number: int, value: dict[str, Any]) -> str | None:
        try:
            line = _Line.model_validate(value)
        except ValidationError as exc:
            return _invalid(exc)
        if (line.content is None) == (line.error_code is None):
            return "give either `content` or, for a failure, `error_code`"
        if line.custom_id not in said:
            near = difflib.get_close_matches(line.custom_id, said, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "remove the line, or add the question"
            return f"custom_id '{line.custom_id}' is not in {suite}; {hint}"
        member = slug(line.model) or ""
        if what := _misnamed(line, member, replay.titles):
            return what
        if (first := seen.setdefault((line.custom_id, member), number)) != number:
            return f"'{line.model}' answered '{line.custom_id}' in line {first} already; keep one"
        said[line.custom_id][member] = _reply(line, member, models)
        return None

    faults = _each(data, file, take)
    faults += [
        LineFault(
            suite,
            q.line,
            f"'{q.custom_id}' has no answer in {file}; add one, or remove the question",
        )
        for q in questions
        if not said[q.custom_id]
    ]
    order = list(replay.titles)
    replay.replies = {key: [by[m] for m in order if m in by] for key, by in said.items()}
    return replay, faults


def _misnamed(line: _Line, member: str, titles: dict[str, str]) -> str | None:
    """What is wrong with a line's model as a member; adds it to the titles."""
    if not member:
        return f"model '{line.model}' has no letter or digit to name a member by; rename it"
    if (title := titles.setdefault(member, line.model)) != line.model:
        return f"model '{line.model}' would have the same member name as '{title}', '{member}'; rename one"
    if len(titles) > MOST_MEMBERS:
        return f"it is the answer of model number {len(titles)}; a pool has at most {MOST_MEMBERS} members"
    return None


def slug(model: str) -> str | None:
    """A model's name as a member's: `org/GPT-4.1` is `org-gpt-4-1`; None where nothing of it is left."""
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


def _each(
    data: bytes, file: str, take: Callable[[int, dict[str, Any]], str | None]
) -> list[LineFault]:
    """Give each line to `take`, which says what is wrong with it."""
    return [LineFault(file, number, what) for number, what in _taken(data, take) if what]


def _taken(
    data: bytes, take: Callable[[int, dict[str, Any]], str | None]
) -> Iterator[tuple[int, str | None]]:
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw)
        except UnicodeDecodeError:
            yield number, "it is not UTF-8; save the file as UTF-8"
        except (ValueError, RecursionError) as exc:
            where = f" at column {exc.colno}" if isinstance(exc, json.JSONDecodeError) else ""
            yield number, f"it is not valid JSON{where}; write one JSON object a line"
        else:
            yield (
                number,
                take(number, value)
                if isinstance(value, dict)
                else "it is no JSON object; write one a line",
            )


def _invalid(exc: ValidationError) -> str:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"'{'.'.join(str(p) for p in first['loc'])}': {first['msg']}"
