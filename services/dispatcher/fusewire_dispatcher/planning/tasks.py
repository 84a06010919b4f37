"""Tasks: of a planned member, and of a round that the judge asks for. Pure."""

from collections.abc import Iterable
from datetime import datetime

from fusewire import ids
from fusewire.contracts import Call, Message, Prompt, Round, Sampling, Task, Tasks, Tier
from fusewire.errors import UnacceptableMessage
from fusewire_dispatcher.planning.catalogue import Catalogue, MemberSpec, ModelSpec, PoolSpec
from fusewire_dispatcher.residency import permits

SAMPLE_TEMPERATURE = 0.7
"""Of an edge member's further samples, where the temperature would be 0."""


def answer_task(
    prompt: Prompt,
    member: MemberSpec,
    tier: Tier,
    call: str,
    deadline_at: datetime,
    *,
    is_streamed: bool,
) -> Task:
    """Build the task of a member's first answer.

    Args:
        prompt: the prompt to answer.
        member: who answers.
        tier: of the member's model.
        call: the member's name, or that of a further sample.
        deadline_at: the panel's deadline.
        is_streamed: whether the worker publishes tokens.
    """
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
        sampling=_answer_sampling(prompt, member, tier, call),
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


def _answer_sampling(prompt: Prompt, member: MemberSpec, tier: Tier, call: str) -> Sampling:
    """Merge the sampling of prompt and member, and give edge calls a seed and a temperature."""
    sampling = prompt.sampling.over(member.sampling)
    is_sample = call != member.name
    has_seed = prompt.sampling.seed is not None
    # A client that names one model is given what that model makes of the client's own seed.
    is_seed_final = has_seed and prompt.members == (member.model,) and not is_sample
    if not is_seed_final and (tier == "edge" or has_seed):
        # Members of one model must not give one answer three times, so each has a seed of its
        # own, also where the client fixed one. Hosted models draw by themselves, and some
        # refuse a seed.
        sampling = Sampling(seed=ids.seed(str(prompt.seed), call)).over(sampling)
    if tier == "edge" and is_sample and not sampling.temperature:
        # Without chance the samples could only agree.
        sampling = sampling.model_copy(update={"temperature": SAMPLE_TEMPERATURE})
    return sampling


def expand_round(round_: Round, catalogue: Catalogue) -> tuple[Task, ...]:
    """Return the tasks of a round that the judge asks for, in the order of its calls.

    Raises:
        UnacceptableMessage: a call names a model that is unknown, or that may not see this
            prompt.
    """
    pool = catalogue.pools.get(round_.pool)
    catalogue = catalogue.for_tenant(round_.tenant)
    return tuple(
        _round_task(round_, call, _permitted_model(round_, call, catalogue), pool)
        for call in round_.calls
    )


def _permitted_model(round_: Round, call: Call, catalogue: Catalogue) -> ModelSpec:
    """Find a call's model. Raises UnacceptableMessage."""
    place = f"round {round_.round}, call {call.name}"
    model = catalogue.models.get(call.model)
    if model is None:
        raise UnacceptableMessage(f"{place}: model {call.model} is not configured")
    if not permits(round_.residency, model.tier):
        raise UnacceptableMessage(f"{place}: model {call.model} is hosted, the prompt edge-only")
    return model


def _round_task(round_: Round, call: Call, model: ModelSpec, pool: PoolSpec | None) -> Task:
    member = pool.member(call.member, call.model) if pool and call.member else None
    return Task(
        task_id=ids.task_id(round_.fusion_id, round_.round, call.name),
        fusion_id=round_.fusion_id,
        round=round_.round,
        call=call.name,
        kind=call.kind,
        member=call.member,
        model=call.model,
        tier=model.tier,
        tenant=round_.tenant,
        messages=with_system(call.messages, member.system if member else None),
        sampling=_round_sampling(round_, call, model.tier, member),
        expected_tokens=call.expected_tokens,
        choices=call.choices,
        is_in_steps=bool(member and member.is_in_steps and call.kind == "answer"),
        tools=call.tools,
        tool_choice=call.tool_choice,
        parallel_tool_calls=call.parallel_tool_calls,
        is_streamed=call.is_streamed,
        depth=round_.depth,
        residency=round_.residency,
        priority=round_.priority,
        deadline_at=round_.deadline_at,
    )


def _round_sampling(round_: Round, call: Call, tier: Tier, member: MemberSpec | None) -> Sampling:
    """Merge the sampling of call and member, and give edge calls a seed.

    The seed of an answer does not depend on its round, so that a member of the second wave
    answers as it would have in the first.
    """
    sampling = call.sampling.over(member.sampling) if member else call.sampling
    if tier != "edge":
        return sampling
    turn = () if call.kind == "answer" else (str(round_.round),)
    return Sampling(seed=ids.seed(str(round_.seed), *turn, call.name)).over(sampling)


def group_by_queue(pool: str, tasks: Iterable[Task]) -> tuple[Tasks, ...]:
    """Group the tasks of one round by the queue of the worker that takes them.

    Hosted ones travel together, and those of each edge model (docs/decisions/0041).
    """
    queues: dict[tuple[Tier, str], list[Task]] = {}
    for task in tasks:
        queue = task.model if task.tier == "edge" else pool
        queues.setdefault((task.tier, queue), []).append(task)
    return tuple(Tasks.from_tasks(queue, group) for (_, queue), group in queues.items())


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Put a member's system prompt before a conversation that has none of its own."""
    if system is None or any(message.role == "system" for message in messages):
        return messages
    return (Message(role="system", content=system), *messages)
