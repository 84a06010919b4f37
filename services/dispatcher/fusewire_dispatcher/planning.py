"""Planning: a prompt into a plan and tasks, a round into tasks. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from fusewire import ids
from fusewire.contracts import (
    ExcludedMember,
    Message,
    Plan,
    PlannedJudge,
    PlannedMember,
    Policy,
    Prompt,
    RecordedAnswer,
    Round,
    Sampling,
    Task,
    Tasks,
    Tier,
)
from fusewire.errors import UnacceptableMessage
from fusewire.tokens import estimate
from fusewire_dispatcher.residency import permits

JUDGE_SHARE = 0.25
JUDGE_MOST_S = 120.0

GATE_SAMPLES = 3
"""Edge answers that an edge-first gate looks at, whoever gives them."""
SAMPLE_TEMPERATURE = 0.7


@dataclass(frozen=True)
class ModelSpec:
    """What planning must know of a configured model."""

    tier: Tier
    family: str
    has_tools: bool = True
    """Whether it can be given functions to call."""
    has_images: bool = False
    """Whether it can be given images."""


@dataclass(frozen=True)
class MemberSpec:
    """A member of a pool."""

    name: str
    model: str
    weight: float
    system: str | None
    sampling: Sampling
    is_required: bool = False
    is_in_steps: bool = False


@dataclass(frozen=True)
class PoolSpec:
    """A pool."""

    members: tuple[MemberSpec, ...]
    judge: str | None
    quorum: float
    debate_rounds: int
    config_hash: str
    jury: tuple[str, ...] = ()
    is_by_margin: bool = False
    """How its edge judges choose."""
    judges_own: bool = False
    policy: Policy = field(default_factory=Policy)
    max_tokens: int | None = None
    """The answer length of members that are not its own."""

    def member(self, name: str, model: str) -> MemberSpec:
        """A member of this name and model: its own, or one that a prompt names by its model.

        The latter has the settings of the pool's first member of that model, if there is one.
        """
        alike = [one for one in self.members if one.model == model]
        for own in alike:
            if own.name == name:
                return own
        if alike and name == model:
            return replace(alike[0], name=name)
        return MemberSpec(name, model, 1.0, None, Sampling(max_tokens=self.max_tokens))


@dataclass(frozen=True)
class Catalogue:
    """All pools and models."""

    pools: Mapping[str, PoolSpec]
    models: Mapping[str, ModelSpec]
    variants: Mapping[tuple[str, str], PoolSpec] = field(default_factory=dict)
    """Pools under presets that prompts ask for."""

    def pool(self, prompt: Prompt) -> PoolSpec | None:
        """The pool of a prompt, as it asks for it."""
        if prompt.preset is None:
            return self.pools.get(prompt.pool)
        return self.variants.get((prompt.pool, prompt.preset))


def plan(prompt: Prompt, book: Catalogue, now: datetime) -> tuple[Plan, tuple[Task, ...]]:
    """Who is asked, who is not and why, and by when.

    An unknown pool or one without a permitted member gives a plan without members, which
    the judge turns into a failed outcome at once: a prompt is never just forgotten.
    """
    pool = book.pool(prompt)
    policy = _policy(prompt, pool)
    members: tuple[PlannedMember, ...] = ()
    if pool is None:
        excluded = [ExcludedMember(name=prompt.pool, reason="unknown_pool")]
    elif prompt.recorded:
        members, excluded = tuple(_replayed(one, prompt, book) for one in prompt.recorded), []
    else:
        members, excluded = _panel(prompt, _wanted(prompt, pool), policy, book)
    has_choice = len(members) + len(excluded) > 1
    judge, jury, barred = _judges(prompt, pool, book) if has_choice else (None, (), [])
    # What one member says is the outcome, word for word.
    is_shown = prompt.is_streamed and len(members) == 1
    if is_shown:
        policy = policy.model_copy(update={"hedge": 0.0})
    made = Plan(
        fusion_id=prompt.fusion_id,
        tenant=prompt.tenant,
        pool=prompt.pool,
        mode=prompt.mode,
        members=members,
        judge=judge,
        jury=jury,
        policy=policy,
        excluded=(*excluded, *barred),
        quorum=1.0 if pool is None or prompt.is_complete else pool.quorum,
        debate_rounds=pool.debate_rounds if pool else 1,
        residency=prompt.residency,
        priority=prompt.priority,
        seed=prompt.seed,
        submitted_at=prompt.submitted_at,
        planned_at=now,
        panel_deadline_at=_panel_deadline(prompt, has_judge=judge is not None and len(members) > 1),
        deadline_at=prompt.deadline_at,
        config_hash=pool.config_hash if pool else "",
    )
    if pool is None or prompt.recorded:
        return made, ()
    return made, tuple(
        _answer_task(
            prompt,
            pool.member(m.name, m.model),
            m.tier,
            call,
            made.panel_deadline_at,
            is_streamed=is_shown,
        )
        for m in members
        if m.wave == 0
        for call in m.calls
    )


def _wanted(prompt: Prompt, pool: PoolSpec) -> Iterable[MemberSpec]:
    """Whom the prompt wants to be asked."""
    if not prompt.members:
        return pool.members
    return [pool.member(model, model) for model in dict.fromkeys(prompt.members)]


def _policy(prompt: Prompt, pool: PoolSpec | None) -> Policy:
    policy = pool.policy if pool else Policy()
    changed: dict[str, Any] = {"criteria": prompt.criteria} if prompt.criteria else {}
    if prompt.is_complete:
        changed |= {"early_stop": 1.0, "gate": "none", "hedge": 0.0}
    return policy.model_copy(update=changed)


def _panel(
    prompt: Prompt, wanted: Iterable[MemberSpec], policy: Policy, book: Catalogue
) -> tuple[tuple[PlannedMember, ...], list[ExcludedMember]]:
    """Who is asked, in which wave and how often; and who is not."""
    asked: list[MemberSpec] = []
    excluded: list[ExcludedMember] = []
    left = policy.max_total_tokens
    needs = _needs(prompt)
    for member in wanted:
        reason = _barred(member.model, prompt, book) or _unable(book.models[member.model], needs)
        tokens = _estimate(prompt, member)
        if reason is None and left is not None and tokens > left:
            reason = "token_cap"
        if reason:
            excluded.append(ExcludedMember(name=member.name, reason=reason, weight=member.weight))
            continue
        asked.append(member)
        left = left - tokens if left is not None else None
    tiers = [book.models[m.model].tier for m in asked]
    is_gated = policy.gate == "edge-first" and len(set(tiers)) > 1
    samples = math.ceil(GATE_SAMPLES / tiers.count("edge")) if is_gated else 1
    return tuple(
        PlannedMember(
            name=member.name,
            model=member.model,
            tier=tier,
            family=book.models[member.model].family,
            weight=member.weight,
            is_required=member.is_required,
            wave=1 if is_gated and tier == "remote" else 0,
            samples=samples if tier == "edge" else 1,
        )
        for member, tier in zip(asked, tiers, strict=True)
    ), excluded


def _replayed(one: RecordedAnswer, prompt: Prompt, book: Catalogue) -> PlannedMember:
    model = book.models.get(one.model)
    return PlannedMember(
        name=one.member,
        model=one.model,
        tier=model.tier if model else "remote",
        family=one.family or (model.family if model else one.model),
        weight=one.weight,
        is_replay_only=_barred(one.model, prompt, book) is not None,
    )


def _judges(
    prompt: Prompt, pool: PoolSpec | None, book: Catalogue
) -> tuple[PlannedJudge | None, tuple[PlannedJudge, ...], list[ExcludedMember]]:
    """Who writes, who votes, and who may not."""
    if pool is None:
        return None, (), []
    writer, jury = (prompt.judge, ()) if prompt.judge else (pool.judge, pool.jury)
    permitted: dict[str, PlannedJudge] = {}
    excluded: list[ExcludedMember] = []
    for model in dict.fromkeys((*((writer,) if writer else ()), *jury)):
        if reason := _barred(model, prompt, book):
            excluded.append(
                ExcludedMember(name="judge" if model == writer else f"juror-{model}", reason=reason)
            )
        else:
            spec = book.models[model]
            by_margin = spec.tier == "edge" and pool.is_by_margin
            permitted[model] = PlannedJudge(
                model=model,
                tier=spec.tier,
                family=spec.family,
                by_margin=by_margin,
                sees_own=by_margin and pool.judges_own,
            )
    jurors = tuple(permitted[model] for model in jury if model in permitted)
    return permitted.get(writer or "", next(iter(jurors), None)), jurors, excluded


def expand(asked: Round, book: Catalogue) -> tuple[Task, ...]:
    """The tasks of a round that the judge asks for.

    Raises:
        Unacceptable: a call names a model that is unknown, or that may not see this prompt.
    """
    pool = book.pools.get(asked.pool)
    tasks = []
    for call in asked.calls:
        model = book.models.get(call.model)
        if model is None:
            raise UnacceptableMessage(
                f"round {asked.round}, call {call.name}: model {call.model} is not configured"
            )
        if not permits(asked.residency, model.tier):
            raise UnacceptableMessage(
                f"round {asked.round}, call {call.name}: model {call.model} is hosted, the prompt edge-only"
            )
        member = pool.member(call.member, call.model) if pool and call.member else None
        sampling = call.sampling.over(member.sampling) if member else call.sampling
        if model.tier == "edge":
            turn = () if call.kind == "answer" else (str(asked.round),)
            sampling = Sampling(seed=ids.seed(str(asked.seed), *turn, call.name)).over(sampling)
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
                sampling=sampling,
                expected_tokens=call.expected_tokens,
                choices=call.choices,
                is_in_steps=bool(member and member.is_in_steps and call.kind == "answer"),
                tools=call.tools,
                tool_choice=call.tool_choice,
                parallel_tool_calls=call.parallel_tool_calls,
                is_streamed=call.is_streamed,
                depth=asked.depth,
                residency=asked.residency,
                priority=asked.priority,
                deadline_at=asked.deadline_at,
            )
        )
    return tuple(tasks)


def by_queue(pool: str, tasks: Iterable[Task]) -> tuple[Tasks, ...]:
    """The tasks of one round, those together that one worker takes: all hosted ones, and those of each edge model."""
    queues: dict[tuple[Tier, str], list[Task]] = {}
    for task in tasks:
        queue = task.model if task.tier == "edge" else pool
        queues.setdefault((task.tier, queue), []).append(task)
    return tuple(Tasks.from_tasks(queue, together) for (_, queue), together in queues.items())


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The conversation, led by the member's system prompt where it brings none of its own."""
    if system is None or any(m.role == "system" for m in messages):
        return messages
    return (Message(role="system", content=system), *messages)


def _barred(model: str, prompt: Prompt, book: Catalogue) -> str | None:
    """Why a model may not be asked at all, as a judge or as a member."""
    spec = book.models.get(model)
    if spec is None:
        return "unknown_model"
    if not permits(prompt.residency, spec.tier):
        return "residency"
    return None


@dataclass(frozen=True)
class _Requirements:
    """What a prompt needs of its members.

    Attributes:
        tools: it offers functions, or tells of calls that were made.
        images: it shows some.
        long_texts: a part of its text stands in the object store, which the edge does not read.
    """

    tools: bool
    images: bool
    long_texts: bool


def _needs(prompt: Prompt) -> _Requirements:
    return _Requirements(
        tools=bool(prompt.tools) or any(m.tool_calls or m.role == "tool" for m in prompt.messages),
        images=any(m.images for m in prompt.messages),
        long_texts=any(m.texts for m in prompt.messages),
    )


def _unable(model: ModelSpec, needs: _Requirements) -> str | None:
    """Why a model cannot answer, if it cannot."""
    if needs.tools and not model.has_tools:
        return "no_tools"
    if needs.images and not model.has_images:
        return "no_images"
    return "no_long_texts" if needs.long_texts and model.tier == "edge" else None


def _estimate(prompt: Prompt, member: MemberSpec) -> int:
    """About how many tokens one answer takes, prompt included."""
    messages = with_system(prompt.messages, member.system)
    return estimate(messages, prompt.sampling.over(member.sampling).max_tokens, prompt.tools)


def _panel_deadline(prompt: Prompt, *, has_judge: bool) -> datetime:
    whole = (prompt.deadline_at - prompt.submitted_at).total_seconds()
    reserve = min(whole * JUDGE_SHARE, JUDGE_MOST_S) if has_judge else 0.0
    return prompt.deadline_at - timedelta(seconds=reserve)


def _answer_task(
    prompt: Prompt,
    member: MemberSpec,
    tier: Tier,
    call: str,
    deadline_at: datetime,
    *,
    is_streamed: bool,
) -> Task:
    sampling = prompt.sampling.over(member.sampling)
    # A client that names one model is given what that model makes of its seed.
    is_given = (
        prompt.sampling.seed is not None
        and prompt.members == (member.model,)
        and call == member.name
    )
    if not is_given and (tier == "edge" or prompt.sampling.seed is not None):
        # Members of one model must not give one answer three times, so each has a seed of its own, also where the
        # client fixed one. Hosted models draw by themselves, and some refuse a seed.
        sampling = Sampling(seed=ids.seed(str(prompt.seed), call)).over(sampling)
    if tier == "edge" and call != member.name and not sampling.temperature:
        # Without chance the samples could only agree.
        sampling = sampling.model_copy(update={"temperature": SAMPLE_TEMPERATURE})
    return Task(
        task_id=ids.task_id(prompt.fusion_id, 0, call),
        fusion_id=prompt.fusion_id,
        round=0,
        call=call,
        kind="answer",
        member=member.name,
        model=member.model,
        tier=tier,
        tenant=prompt.tenant,
        messages=with_system(prompt.messages, member.system),
        sampling=sampling,
        is_in_steps=member.is_in_steps,
        tools=prompt.tools,
        tool_choice=prompt.tool_choice,
        parallel_tool_calls=prompt.parallel_tool_calls,
        is_streamed=is_streamed,
        depth=prompt.depth,
        residency=prompt.residency,
        priority=prompt.priority,
        deadline_at=deadline_at,
    )
