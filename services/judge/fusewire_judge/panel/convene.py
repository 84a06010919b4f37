"""When the panel closes, whom it calls before, and how long it waits. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from fusewire import ids
from fusewire.contracts import AnswerKind, Call, ClosedBy, PlannedMember, Route
from fusewire.contracts.call_names import hedge_name, is_hedge
from fusewire_judge.model import Ask, Case, Flaw, MemberAnswer, Panel, Wait
from fusewire_judge.panel.gate import check_gate
from fusewire_judge.panel.progress import (
    ArrivalsByMember,
    arrivals_by_member,
    is_frozen,
    is_settled,
    main_candidate,
    split_members,
)
from fusewire_judge.panel.quorum import close_early, closes_at, quorum_at
from fusewire_judge.panel.usable_answers import usable_answers


def convene(case: Case, now: datetime) -> Panel | Wait | Ask:
    """Close the panel if it is over; else call further members, or wait.

    What comes after a strategy has published its first round changes nothing: the panel is then
    made of what had come before, and closes for the same reason.
    """
    arrivals = arrivals_by_member(case)
    called_members, second_wave = split_members(case)
    if second_wave:
        decision = _pass_second_wave(case, called_members, second_wave, arrivals, now)
        if decision is not None:
            return decision
    closing = _closing(case, called_members, arrivals, now)
    if not isinstance(closing, datetime):
        return _close(case, called_members, arrivals, closing)
    hedges = _hedges(case, called_members, arrivals)
    calls = tuple(
        _answer_call(case, m, hedge_name(m.name)) for due_at, m in hedges if due_at <= now
    )
    # A second call is a round of its own, before the strategy's first (docs/decisions/0013).
    if calls:
        return Ask(calls, len(case.rounds) + 1, closing)
    return Wait(min([closing, *(due_at for due_at, _ in hedges)]))


def panel_so_far(case: Case) -> Panel:
    """The panel of a fusion that is cancelled: what has come by then."""
    called_members, _ = split_members(case)
    return _close(case, called_members, arrivals_by_member(case), None)


# -- the route --------------------------------------------------------------------------------


def _pass_second_wave(
    case: Case,
    called_members: Sequence[PlannedMember],
    second_wave: Sequence[PlannedMember],
    arrivals: ArrivalsByMember,
    now: datetime,
) -> Panel | Wait | Ask | None:
    """Pass the gate or follow the route; None where those that were called are the panel."""
    route = case.plan.route
    if route is None:
        return _pass_gate(case, called_members, second_wave, arrivals, now)
    if not called_members:
        return _call_chosen(case, route, arrivals, now)
    if _needs_others(case, called_members, arrivals, now):
        calls = tuple(_first_call(case, member, is_streamed=False) for member in second_wave)
        return Ask(calls, len(case.rounds) + 1, case.plan.panel_deadline_at)
    return None


def _call_chosen(
    case: Case, route: Route, arrivals: ArrivalsByMember, now: datetime
) -> Panel | Ask:
    """Call the members that the route has chosen, in a round of their own."""
    all_members = case.plan.members
    if is_frozen(case) or now >= case.plan.panel_deadline_at:
        return _close(case, all_members, arrivals, "deadline")
    # `fusewire ablate` follows a fusion without the member that was chosen.
    members = [m for m in all_members if m.name in route.members] or all_members
    # A single member's text is the outcome, so it can be shown (docs/decisions/0017).
    is_streamed = case.prompt.is_streamed and len(members) == 1
    calls = tuple(_first_call(case, member, is_streamed=is_streamed) for member in members)
    return Ask(calls, len(case.rounds) + 1, case.plan.panel_deadline_at)


def _needs_others(
    case: Case, called_members: Sequence[PlannedMember], arrivals: ArrivalsByMember, now: datetime
) -> bool:
    """Whether none of those that the route has chosen has given an answer, or will."""
    if is_frozen(case) or now >= case.plan.panel_deadline_at:
        return False
    if _pending_members(case, called_members, arrivals):
        return False
    answers, flaws, _ = usable_answers(case, called_members, arrivals)
    return all(answer.member in flaws for answer in answers)


def _first_call(case: Case, member: PlannedMember, *, is_streamed: bool) -> Call:
    """Call a member as the dispatcher would have, with a seed of its own if the client gave one."""
    call = _answer_call(case, member, member.name)
    seed = None
    if case.prompt.sampling.seed is not None:
        seed = ids.seed(str(case.prompt.seed), member.name)
    sampling = call.sampling.model_copy(update={"seed": seed})
    return call.model_copy(update={"sampling": sampling, "is_streamed": is_streamed})


# -- the second wave --------------------------------------------------------------------------


def _pass_gate(
    case: Case,
    first_wave: Sequence[PlannedMember],
    second_wave: Sequence[PlannedMember],
    arrivals: ArrivalsByMember,
    now: datetime,
) -> Panel | Wait | Ask:
    """Close with the first wave if it is sufficient, call the second if it is not, or wait."""
    all_members = case.plan.members
    if is_frozen(case):
        return _close(case, all_members, arrivals, "deadline")
    gate = check_gate(case, arrivals, first_wave, now)
    if gate == "sufficient":
        return _close(case, first_wave, arrivals, "gate")
    if gate != "insufficient":
        return gate
    if now < case.plan.panel_deadline_at:
        calls = tuple(_answer_call(case, member, member.name) for member in second_wave)
        return Ask(calls, len(case.rounds) + 1, case.plan.panel_deadline_at)
    # It is too late to call the second wave, whose members therefore count as missing.
    return _close(case, all_members, arrivals, "deadline")


def _answer_call(case: Case, member: PlannedMember, name: str) -> Call:
    prompt = case.prompt
    return Call(
        name=name,
        kind="answer",
        model=member.model,
        member=member.name,
        messages=prompt.messages,
        sampling=prompt.sampling.model_copy(update={"seed": None}),
        tools=prompt.tools,
        tool_choice=prompt.tool_choice,
        parallel_tool_calls=prompt.parallel_tool_calls,
    )


def _hedges(
    case: Case, called_members: Sequence[PlannedMember], arrivals: ArrivalsByMember
) -> list[tuple[datetime, PlannedMember]]:
    """Stragglers that may be called a second time, and when. A second wave is not hedged."""
    is_routed = case.plan.route is not None
    # The first call of a member that a route has chosen is one of a round too.
    recalled_names = {
        call.member for call in case.panel_calls if is_hedge(call.name) or not is_routed
    }
    hedges = []
    for member in called_members:
        is_recalled = member.name in recalled_names
        if member.hedge_after_s is None or is_recalled or arrivals[member.name]:
            continue
        due_at = case.plan.planned_at + timedelta(seconds=member.hedge_after_s)
        hedges.append((due_at, member))
    return hedges


# -- closing ----------------------------------------------------------------------------------


def _closing(
    case: Case,
    called_members: Sequence[PlannedMember],
    arrivals: ArrivalsByMember,
    now: datetime,
) -> ClosedBy | datetime:
    """Why the panel is over; or, while it is not, when it will be at the latest."""
    plan = case.plan
    pending_members = _pending_members(case, called_members, arrivals)
    if not pending_members:
        return "complete"
    answers, flaws, kind = usable_answers(case, called_members, arrivals)
    is_sound = not any(answer.member in flaws for answer in answers)
    reason = _early_reason(case, answers, kind, pending_members) if is_sound else None
    if reason:
        return reason
    is_required_pending = any(member.is_required for member in pending_members)
    answered_at = _answered_at(called_members, arrivals, flaws)
    weights = {member.name: member.weight_for(kind) for member in called_members}
    quorum = quorum_at(plan, weights, answered_at)
    until = closes_at(plan, quorum, is_required_pending=is_required_pending)
    if now < until and not is_frozen(case):
        return until
    return "deadline" if quorum is None or is_required_pending else "quorum"


def _pending_members(
    case: Case, members: Sequence[PlannedMember], arrivals: ArrivalsByMember
) -> list[PlannedMember]:
    return [member for member in members if not is_settled(case, member, arrivals[member.name])]


def _answered_at(
    members: Sequence[PlannedMember], arrivals: ArrivalsByMember, flaws: Mapping[str, Flaw]
) -> dict[str, datetime]:
    """When each member's answer came, without members whose answer is flawed."""
    answered_at = {}
    for member in members:
        if member.name in flaws or not arrivals[member.name]:
            continue
        main = main_candidate(arrivals[member.name])
        if main.candidate.ok:
            answered_at[member.name] = main.received_at
    return answered_at


def _early_reason(
    case: Case,
    answers: Sequence[MemberAnswer],
    kind: AnswerKind,
    pending_members: Sequence[PlannedMember],
) -> ClosedBy | None:
    """Why the panel may close although members are pending; None if it may not.

    Only a vote can be decided early, and no required member is left out of it.
    """
    if kind in ("open", "tool_call") or any(member.is_required for member in pending_members):
        return None
    pending_weights = [member.weight_for(kind) for member in pending_members]
    return close_early(case.plan, answers, pending_weights, case.prompt.sampling.response_schema)


def _close(
    case: Case,
    members: Sequence[PlannedMember],
    arrivals: ArrivalsByMember,
    closed_by: ClosedBy | None,
) -> Panel:
    answers, flaws, kind = usable_answers(case, members, arrivals)
    names = [member.name for member in members]
    return Panel(
        answers=answers,
        received={name: main_candidate(arrivals[name]) for name in names if arrivals[name]},
        skipped=frozenset(member.name for member in case.plan.members) - set(names),
        flaws=flaws,
        kind=kind,
        closed_by=closed_by,
    )
