"""Planning: a prompt into a plan and tasks, a round into tasks. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fusewire import ids
from fusewire.contracts import (
    Excluded,
    Message,
    Plan,
    PlannedJudge,
    PlannedMember,
    Prompt,
    Round,
    Sampling,
    Task,
    Tier,
)
from fusewire.errors import Unacceptable
from fusewire_dispatcher.residency import permits

JUDGE_SHARE = 0.25
JUDGE_MOST_S = 120.0


@dataclass(frozen=True)
class ModelSpec:
    """What planning must know of a configured model."""

    tier: Tier
    family: str


@dataclass(frozen=True)
class MemberSpec:
    """A member of a pool."""

    name: str
    model: str
    weight: float
    system: str | None
    sampling: Sampling


@dataclass(frozen=True)
class PoolSpec:
    """A pool."""

    members: tuple[MemberSpec, ...]
    judge: str | None
    quorum: float
    debate_rounds: int
    config_hash: str


@dataclass(frozen=True)
class Book:
    """All pools and models."""

    pools: Mapping[str, PoolSpec]
    models: Mapping[str, ModelSpec]


def plan(prompt: Prompt, book: Book, now: datetime) -> tuple[Plan, tuple[Task, ...]]:
    """Who is asked, who is not and why, and by when.

    An unknown pool or one without a permitted member gives a plan without members, which
    the judge turns into a failed outcome at once: a prompt is never just forgotten.
    """
    pool = book.pools.get(prompt.pool)
    asked: list[MemberSpec] = []
    excluded: list[Excluded] = []
    for member in pool.members if pool else ():
        reason = _barred(member.model, prompt, book)
        if reason:
            excluded.append(Excluded(name=member.name, reason=reason))
        else:
            asked.append(member)
    if pool is None:
        excluded.append(Excluded(name=prompt.pool, reason="unknown_pool"))
    judge = None
    if pool and pool.judge:
        reason = _barred(pool.judge, prompt, book)
        if reason:
            excluded.append(Excluded(name="judge", reason=reason))
        else:
            model = book.models[pool.judge]
            judge = PlannedJudge(model=pool.judge, tier=model.tier, family=model.family)
    made = Plan(
        fusion_id=prompt.fusion_id,
        tenant=prompt.tenant,
        pool=prompt.pool,
        mode=prompt.mode,
        members=tuple(_planned(m, book) for m in asked),
        judge=judge,
        excluded=tuple(excluded),
        quorum=pool.quorum if pool else 1.0,
        debate_rounds=pool.debate_rounds if pool else 1,
        residency=prompt.residency,
        priority=prompt.priority,
        seed=prompt.seed,
        submitted_at=prompt.submitted_at,
        planned_at=now,
        panel_deadline_at=_panel_deadline(prompt, has_judge=judge is not None),
        deadline_at=prompt.deadline_at,
        config_hash=pool.config_hash if pool else "",
    )
    return made, tuple(_answer_task(prompt, member, made, book) for member in asked)


def expand(asked: Round, book: Book) -> tuple[Task, ...]:
    """The tasks of a round that the judge asks for.

    Raises:
        Unacceptable: a call names a model that is unknown, or that may not see this prompt.
    """
    pool = book.pools.get(asked.pool)
    members = {m.name: m for m in pool.members} if pool else {}
    tasks = []
    for call in asked.calls:
        model = book.models.get(call.model)
        if model is None:
            raise Unacceptable(f"round {asked.round}, call {call.name}: model {call.model} is not configured")
        if not permits(asked.residency, model.tier):
            raise Unacceptable(
                f"round {asked.round}, call {call.name}: model {call.model} is hosted, the prompt edge-only"
            )
        member = members.get(call.member) if call.member else None
        sampling = call.sampling.over(member.sampling) if member else call.sampling
        tasks.append(
            Task(
                task_id=ids.task_id(asked.fusion_id, asked.round, call.name),
                fusion_id=asked.fusion_id,
                round=asked.round,
                call=call.name,
                kind=call.kind,
                member=call.member,
                model=call.model,
                tier=model.tier,
                tenant=asked.tenant,
                messages=with_system(call.messages, member.system if member else None),
                sampling=sampling.over(Sampling(seed=ids.seed(str(asked.seed), str(asked.round), call.name))),
                residency=asked.residency,
                priority=asked.priority,
                deadline_at=asked.deadline_at,
            )
        )
    return tuple(tasks)


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The conversation, led by the member's system prompt where it brings none of its own."""
    if system is None or any(m.role == "system" for m in messages):
        return messages
    return (Message(role="system", content=system), *messages)


def _barred(model: str, prompt: Prompt, book: Book) -> str | None:
    spec = book.models.get(model)
    if spec is None:
        return "unknown_model"
    return None if permits(prompt.residency, spec.tier) else "residency"


def _planned(member: MemberSpec, book: Book) -> PlannedMember:
    model = book.models[member.model]
    return PlannedMember(
        name=member.name, model=member.model, tier=model.tier, family=model.family, weight=member.weight
    )


def _panel_deadline(prompt: Prompt, *, has_judge: bool) -> datetime:
    whole = (prompt.deadline_at - prompt.submitted_at).total_seconds()
    reserve = min(whole * JUDGE_SHARE, JUDGE_MOST_S) if has_judge else 0.0
    return prompt.deadline_at - timedelta(seconds=reserve)


def _answer_task(prompt: Prompt, member: MemberSpec, made: Plan, book: Book) -> Task:
    # Members of one model must not give one answer three times, so each has a seed of its own,
    # also where the client fixed one.
    own = Sampling(seed=ids.seed(str(prompt.seed), member.name))
    return Task(
        task_id=ids.task_id(prompt.fusion_id, 0, member.name),
        fusion_id=prompt.fusion_id,
        round=0,
        call=member.name,
        kind="answer",
        member=member.name,
        model=member.model,
        tier=book.models[member.model].tier,
        tenant=prompt.tenant,
        messages=with_system(prompt.messages, member.system),
        sampling=own.over(prompt.sampling).over(member.sampling),
        residency=prompt.residency,
        priority=prompt.priority,
        deadline_at=made.panel_deadline_at,
    )
