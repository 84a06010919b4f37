"""Plans: who is asked, who is not and why, with which policy, and by when. Pure."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fusewire.contracts import (
    ExcludedMember,
    Plan,
    PlannedJudge,
    PlannedMember,
    Policy,
    Prompt,
    RecordedAnswer,
    Task,
)
from fusewire.tokens import estimate
from fusewire_dispatcher.planning.catalogue import Catalogue, MemberSpec, ModelSpec, PoolSpec
from fusewire_dispatcher.planning.route import is_routed
from fusewire_dispatcher.planning.tasks import answer_task, with_system
from fusewire_dispatcher.residency import permits

JUDGE_SHARE = 0.25
"""The share of a prompt's time that is reserved for the judge."""
JUDGE_MOST_S = 120.0
"""The most that is reserved for the judge, in seconds."""
GATE_SAMPLES = 3
"""Edge answers that an edge-first gate looks at, whoever gives them."""


def plan_prompt(
    prompt: Prompt, catalogue: Catalogue, now: datetime
) -> tuple[Plan, tuple[Task, ...]]:
    """Decide who is asked, who is not and why, and by when; return the plan and its first tasks.

    An unknown pool or one without a permitted member gives a plan without members, which
    the judge turns into a failed outcome at once: a prompt is never just forgotten.
    """
    catalogue = catalogue.for_tenant(prompt.tenant)
    pool = catalogue.pool(prompt)
    policy = _policy(prompt, pool)
    members, excluded = _panel(prompt, pool, policy, catalogue)
    judge: PlannedJudge | None = None
    jury: tuple[PlannedJudge, ...] = ()
    if pool is not None and len(members) + len(excluded) > 1:
        judge, jury, excluded_judges = _judges(prompt, pool, catalogue)
        excluded += excluded_judges
    # A single member's text is the outcome, word for word, so it can be shown while it comes
    # (docs/decisions/0017).
    is_streamed = prompt.is_streamed and len(members) == 1
    if is_streamed:
        # A second call writes another text than the one that is shown already.
        policy = policy.model_copy(update={"hedge": 0.0})
    has_judge = judge is not None and len(members) > 1
    plan = Plan(
        fusion_id=prompt.fusion_id,
        tenant=prompt.tenant,
        pool=prompt.pool,
        mode=prompt.mode,
        members=members,
        judge=judge,
        jury=jury,
        policy=policy,
        excluded=tuple(excluded),
        quorum=1.0 if pool is None or prompt.is_complete else pool.quorum,
        debate_rounds=pool.debate_rounds if pool else 1,
        residency=prompt.residency,
        priority=prompt.priority,
        seed=prompt.seed,
        submitted_at=prompt.submitted_at,
        planned_at=now,
        panel_deadline_at=_panel_deadline(prompt, has_judge=has_judge),
        deadline_at=prompt.deadline_at,
        config_hash=pool.config_hash if pool else "",
    )
    if pool is None or prompt.recorded:
        return plan, ()
    return plan, tuple(_first_tasks(prompt, pool, plan, is_streamed=is_streamed))


def _first_tasks(
    prompt: Prompt, pool: PoolSpec, plan: Plan, *, is_streamed: bool
) -> Iterator[Task]:
    """Yield the tasks of the members of the first wave, of all their samples."""
    for member in plan.members:
        if member.wave > 0:
            continue
        spec = pool.member(member.name, member.model)
        for call in member.calls:
            yield answer_task(
                prompt, spec, member.tier, call, plan.panel_deadline_at, is_streamed=is_streamed
            )


def _policy(prompt: Prompt, pool: PoolSpec | None) -> Policy:
    """Return the pool's policy with what the prompt changes of it."""
    policy = pool.policy if pool else Policy()
    overrides: dict[str, Any] = {}
    if prompt.criteria:
        overrides["criteria"] = prompt.criteria
    if prompt.is_complete:
        overrides |= {"early_stop": 1.0, "gate": "none", "hedge": 0.0, "route": "all"}
    return policy.model_copy(update=overrides)


def _panel(
    prompt: Prompt, pool: PoolSpec | None, policy: Policy, catalogue: Catalogue
) -> tuple[tuple[PlannedMember, ...], list[ExcludedMember]]:
    """Decide who is asked, in which wave and how often; and who is not."""
    if pool is None:
        return (), [ExcludedMember(name=prompt.pool, reason="unknown_pool")]
    if prompt.recorded:
        return tuple(_recorded_member(r, prompt, catalogue) for r in prompt.recorded), []
    specs, excluded = _select_members(prompt, pool, policy, catalogue)
    if is_routed(prompt, policy, specs):
        return _routed_members(specs, catalogue), excluded
    return _planned_members(specs, policy, catalogue), excluded


def _select_members(
    prompt: Prompt, pool: PoolSpec, policy: Policy, catalogue: Catalogue
) -> tuple[list[MemberSpec], list[ExcludedMember]]:
    """Split the members into those that are asked, and those that are not."""
    specs: list[MemberSpec] = []
    excluded: list[ExcludedMember] = []
    tokens_left = policy.max_total_tokens
    requirements = _requirements(prompt)
    for member in _requested_members(prompt, pool):
        tokens = _estimate_tokens(prompt, member)
        reason = _exclusion_reason(member.model, requirements, prompt, catalogue)
        if reason is None and tokens_left is not None and tokens > tokens_left:
            reason = "token_cap"
        if reason:
            excluded.append(ExcludedMember(name=member.name, reason=reason, weight=member.weight))
            continue
        specs.append(member)
        if tokens_left is not None:
            tokens_left -= tokens
    return specs, excluded


def _requested_members(prompt: Prompt, pool: PoolSpec) -> Iterable[MemberSpec]:
    """Return the members that the prompt names by their models, or those of the pool."""
    if not prompt.members:
        return pool.members
    return [pool.member(model, model) for model in dict.fromkeys(prompt.members)]


def _planned_members(
    specs: list[MemberSpec], policy: Policy, catalogue: Catalogue
) -> tuple[PlannedMember, ...]:
    """Give each member its wave and its number of samples.

    With an edge-first gate between members of both tiers, edge members are sampled until
    the gate has three answers, and hosted ones wait for the second wave.
    """
    tiers = [catalogue.models[spec.model].tier for spec in specs]
    is_gated = policy.gate == "edge-first" and len(set(tiers)) > 1
    samples = math.ceil(GATE_SAMPLES / tiers.count("edge")) if is_gated else 1
    return tuple(
        _planned_member(
            spec,
            catalogue,
            wave=1 if is_gated and tier == "remote" else 0,
            samples=samples if tier == "edge" else 1,
        )
        for spec, tier in zip(specs, tiers, strict=True)
    )


def _routed_members(specs: Iterable[MemberSpec], catalogue: Catalogue) -> tuple[PlannedMember, ...]:
    """Plan members of which the judge chooses: none is called yet."""
    return tuple(_planned_member(spec, catalogue, wave=1, samples=1) for spec in specs)


def _planned_member(
    spec: MemberSpec, catalogue: Catalogue, *, wave: int, samples: int
) -> PlannedMember:
    model = catalogue.models[spec.model]
    return PlannedMember(
        name=spec.name,
        model=spec.model,
        tier=model.tier,
        family=model.family,
        weight=spec.weight,
        is_required=spec.is_required,
        wave=wave,
        samples=samples,
    )


def _recorded_member(answer: RecordedAnswer, prompt: Prompt, catalogue: Catalogue) -> PlannedMember:
    """Plan the member of a recorded answer; its model need not be configured."""
    model = catalogue.models.get(answer.model)
    return PlannedMember(
        name=answer.member,
        model=answer.model,
        tier=model.tier if model else "remote",
        family=answer.family or (model.family if model else answer.model),
        weight=answer.weight,
        is_replay_only=_barring_reason(answer.model, prompt, catalogue) is not None,
    )


def _judges(
    prompt: Prompt, pool: PoolSpec, catalogue: Catalogue
) -> tuple[PlannedJudge | None, tuple[PlannedJudge, ...], list[ExcludedMember]]:
    """Decide who writes, who votes, and who may do neither."""
    writer, jury = (prompt.judge, ()) if prompt.judge else (pool.judge, pool.jury)
    models = dict.fromkeys((writer, *jury) if writer else jury)
    reasons = {model: _barring_reason(model, prompt, catalogue) for model in models}
    judges = {
        model: _planned_judge(model, pool, catalogue)
        for model, reason in reasons.items()
        if reason is None
    }
    excluded = [
        ExcludedMember(name="judge" if model == writer else f"juror-{model}", reason=reason)
        for model, reason in reasons.items()
        if reason
    ]
    jurors = tuple(judges[model] for model in jury if model in judges)
    # A juror stands in for a writer that may not see the prompt.
    judge = judges.get(writer or "", next(iter(jurors), None))
    return judge, jurors, excluded


def _planned_judge(model: str, pool: PoolSpec, catalogue: Catalogue) -> PlannedJudge:
    spec = catalogue.models[model]
    is_by_margin = spec.tier == "edge" and pool.is_by_margin
    return PlannedJudge(
        model=model,
        tier=spec.tier,
        family=spec.family,
        by_margin=is_by_margin,
        sees_own=is_by_margin and pool.judges_own,
    )


@dataclass(frozen=True)
class _Requirements:
    """What a prompt requires of its members.

    Attributes:
        has_tools: it offers functions, or its conversation has calls of some.
        has_images: it shows some.
        has_long_texts: a part of its text is in the object store, which the edge does not read.
    """

    has_tools: bool
    has_images: bool
    has_long_texts: bool


def _requirements(prompt: Prompt) -> _Requirements:
    messages = prompt.messages
    has_calls = any(message.tool_calls or message.role == "tool" for message in messages)
    return _Requirements(
        has_tools=bool(prompt.tools) or has_calls,
        has_images=any(message.images for message in messages),
        has_long_texts=any(message.texts for message in messages),
    )


def _exclusion_reason(
    model: str, requirements: _Requirements, prompt: Prompt, catalogue: Catalogue
) -> str | None:
    """Return why a model may not or cannot answer as a member, if so."""
    reason = _barring_reason(model, prompt, catalogue)
    return reason or _incapacity(catalogue.models[model], requirements)


def _barring_reason(model: str, prompt: Prompt, catalogue: Catalogue) -> str | None:
    """Return why a model may not be asked at all, as a judge or as a member, if so."""
    spec = catalogue.models.get(model)
    if spec is None:
        return "unknown_model"
    if not permits(prompt.residency, spec.tier):
        return "residency"
    return None


def _incapacity(model: ModelSpec, requirements: _Requirements) -> str | None:
    """Return why a model cannot answer, if so."""
    if requirements.has_tools and not model.has_tools:
        return "no_tools"
    if requirements.has_images and not model.has_images:
        return "no_images"
    # Such a text is beyond the context of models at the edge (docs/decisions/0040).
    if requirements.has_long_texts and model.tier == "edge":
        return "no_long_texts"
    return None


def _estimate_tokens(prompt: Prompt, member: MemberSpec) -> int:
    """Estimate how many tokens one answer takes, prompt included."""
    messages = with_system(prompt.messages, member.system)
    return estimate(messages, prompt.sampling.over(member.sampling).max_tokens, prompt.tools)


def _panel_deadline(prompt: Prompt, *, has_judge: bool) -> datetime:
    """Return the prompt's deadline, less the time that is reserved for a judge."""
    # Otherwise a member that hangs leaves the judge no time (docs/decisions/0008).
    total_s = (prompt.deadline_at - prompt.submitted_at).total_seconds()
    reserve_s = min(total_s * JUDGE_SHARE, JUDGE_MOST_S) if has_judge else 0.0
    return prompt.deadline_at - timedelta(seconds=reserve_s)
