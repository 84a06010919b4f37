"""`decide`: the only entry to all strategies.

A case passes through the panel (`convene`) to the draft of an outcome: without a choice if there is
nothing to choose from, else by fused tool calls, a repair, or the strategy of the pool's mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from fusewire.contracts import Call, Candidate, Mode, PlannedMember, Round
from fusewire.contracts.degraded import DegradedReason
from fusewire.tokens import estimate
from fusewire_judge.model import (
    Ask,
    Case,
    Decided,
    Decision,
    Draft,
    MemberAnswer,
    Panel,
    ReceivedCandidate,
    Replies,
    Steps,
    Wait,
)
from fusewire_judge.panel.convene import convene
from fusewire_judge.panel.recorded import RECORDED
from fusewire_judge.scoring.answers import agreement, heaviest_group, kind_of, share, votes
from fusewire_judge.strategies.best_of import best_of
from fusewire_judge.strategies.debate import debate
from fusewire_judge.strategies.merge import merge
from fusewire_judge.strategies.repair import is_off_schema, repair
from fusewire_judge.strategies.tool_calls import FusedCalls, MemberCalls, fuse
from fusewire_judge.strategies.verify import verify

Strategy = Callable[[Case, Panel], Steps]

STRATEGIES: dict[Mode, Strategy] = {
    "best-of": best_of,
    "merge": merge,
    "debate": debate,
    "verify": verify,
}


def decide(case: Case, now: datetime) -> Decision:
    """Decide what to do with a fusion at the time `now`.

    Order of arrival, duplicates and late answers never change the decision on a case that has gone
    further: for each round, only what came before the next one was published counts.
    """
    if not case.plan.members:
        return _no_members(case)
    if wait := _wait_for_replies(case, now):
        return wait
    panel = convene(case, now)
    if not isinstance(panel, Panel):
        return panel
    draft = None
    if not is_off_schema(panel):
        draft = _draft_without_choice(case, panel)
    if draft is None and panel.kind == "tool_call":
        panel, draft = _fuse_tool_calls(case, panel)
    if draft is None:
        decision = _run(case, _choose(case, panel), now)
        if not isinstance(decision, Decided):
            return decision
        draft = decision.draft
    degraded = (*degraded_reasons(case, panel), *draft.degraded, *_cut_reasons(draft))
    return Decided(replace(draft, degraded=degraded), panel)


def _no_members(case: Case) -> Decided:
    """The end of a fusion whose members are all excluded."""
    excluded = case.plan.excluded
    reasons = ", ".join(f"{member.name}: {member.reason}" for member in excluded)
    degraded = tuple(DegradedReason("excluded", member.name, member.reason) for member in excluded)
    error = f"no member may answer ({reasons})"
    return Decided(Draft(status="failed", degraded=degraded, error=error))


def _choose(case: Case, panel: Panel) -> Steps:
    """The steps that choose or make an answer: a repair, or the pool's strategy."""
    if is_off_schema(panel):
        return _repair_or_choose(case, panel)
    return STRATEGIES[case.plan.mode](case, panel)


def _repair_or_choose(case: Case, panel: Panel) -> Steps:
    """Repair an answer to fit the schema; if that fails, return the best one as it is."""
    draft = yield from repair(case, panel)
    if draft is not None:
        return draft
    draft = _draft_without_choice(case, panel)
    if draft is None:
        draft = yield from STRATEGIES[case.plan.mode](case, panel)
    return replace(draft, degraded=(DegradedReason("schema_unmet"), *draft.degraded))


# -- running a strategy -----------------------------------------------------------------------


def _strategy_rounds(case: Case) -> Sequence[Round]:
    """The rounds of the strategy: those of the panel come first (docs/decisions/0013)."""
    return case.rounds[len(case.panel_rounds) :]


def _wait_for_replies(case: Case, now: datetime) -> Wait | None:
    """Wait for the last round's replies; None if all are there or its deadline has passed.

    Without them the strategy need not be replayed.
    """
    rounds = _strategy_rounds(case)
    if not rounds or now >= rounds[-1].deadline_at:
        return None
    last = rounds[-1]
    is_whole = len(_timely_replies(case, last)) == len(last.calls)
    return None if is_whole else Wait(last.deadline_at)


def _run(case: Case, steps: Steps, now: datetime) -> Ask | Decided:
    """Replay the strategy's rounds to it; decide on the calls that it needs next.

    After the deadline, or beyond a limit of the pool, it gets no more replies and has to end.
    """
    exceeded_limit: str | None = None
    try:
        # From its beginning each time: no state of a strategy is stored or migrated
        # (docs/decisions/0001).
        make_calls = next(steps)
        for round_ in _strategy_rounds(case):
            make_calls = steps.send(_timely_replies(case, round_))
        if now < case.plan.deadline_at:
            calls = make_calls()
            exceeded_limit = _exceeded_limit(case, calls)
            if exceeded_limit is None:
                return Ask(calls, len(case.rounds) + 1, case.plan.deadline_at)
        while True:
            steps.send({})
    except StopIteration as stop:
        draft: Draft = stop.value
    if exceeded_limit:
        draft = replace(draft, degraded=(DegradedReason("capped", exceeded_limit), *draft.degraded))
    return Decided(draft)


def _timely_replies(case: Case, round_: Round) -> Replies:
    """The candidates of a round that came before the next one was published, by call."""
    replies = {}
    for call in round_.calls:
        arrival = case.received.get((round_.round, call.name))
        # A later one would change what the next round was asked (docs/decisions/0002).
        if arrival and arrival.after_rounds <= round_.round:
            replies[call.name] = arrival.candidate
    return replies


def _exceeded_limit(case: Case, calls: Sequence[Call]) -> str | None:
    """The pool's limit that forbids these calls: "cost" or "tokens"; None if none does.

    The limit of cost is compared with what was spent, that of tokens with what these calls are
    estimated to add.
    """
    policy = case.plan.policy
    purchases = _purchases(case)
    cost_usd = sum(candidate.cost_usd or 0.0 for candidate in purchases)
    if policy.max_cost_usd is not None and cost_usd >= policy.max_cost_usd:
        return "cost"
    if policy.max_total_tokens is None:
        return None
    # A call whose tokens were not counted is estimated by the length of the prompt.
    prompt_tokens = estimate(case.prompt.messages, None)
    tokens = sum(_tokens(candidate, prompt_tokens) for candidate in purchases)
    for call in calls:
        tokens += estimate(call.messages, call.sampling.max_tokens or call.expected_tokens)
    return "tokens" if tokens > policy.max_total_tokens else None


def _purchases(case: Case) -> list[Candidate]:
    """The candidates of calls that were made, without recorded answers."""
    candidates = (arrival.candidate for arrival in case.received.values())
    return [candidate for candidate in candidates if candidate.provider != RECORDED]


def _tokens(candidate: Candidate, default: int) -> int:
    usage = candidate.usage
    return usage.prompt_tokens + usage.completion_tokens if usage else default


# -- tool calls -------------------------------------------------------------------------------


def _fuse_tool_calls(case: Case, panel: Panel) -> tuple[Panel, Draft | None]:
    """Fuse the tool calls of a panel.

    Returns:
        (panel, draft of the fused calls); or, where text answers outvote the calls, (the panel of
        those answers, its draft if it leaves no choice)
    """
    fused_calls = _vote_on_calls(case, panel)
    if fused_calls is not None and fused_calls.calls:
        return panel, _calls_draft(panel, fused_calls)
    texts = tuple(answer for answer in panel.answers if not answer.tool_calls)
    if not texts:
        degraded = tuple(DegradedReason("invalid_call", answer.member) for answer in panel.answers)
        error = "every tool call breaks the schema of its tool"
        return panel, Draft("failed", degraded=degraded, error=error)
    invalid_members = [answer.member for answer in panel.answers if answer.tool_calls]
    if fused_calls is not None:
        invalid_members = list(fused_calls.invalid)
    text_panel = replace(
        panel,
        answers=texts,
        kind=kind_of([text.content for text in texts], case.prompt.sampling.response_schema),
        flaws={**panel.flaws, **dict.fromkeys(invalid_members, "invalid_call")},
    )
    return text_panel, _draft_without_choice(case, text_panel)


def _vote_on_calls(case: Case, panel: Panel) -> FusedCalls | None:
    """Fuse the calls by a vote. A text answer votes for no call, unless a call was demanded."""
    is_forced = case.prompt.tool_choice not in ("auto", "none")
    votes_on_calls = [
        MemberCalls(answer.member, answer.weight, answer.tool_calls)
        for answer in panel.answers
        if answer.tool_calls or not is_forced
    ]
    return fuse(votes_on_calls, case.prompt.tools, (case.plan.fusion_id, "tool-call"))


def _calls_draft(panel: Panel, fused_calls: FusedCalls) -> Draft:
    is_single = len(panel.answers) == 1
    # The text that several members write beside their calls belongs to no fused call.
    content = panel.answers[0].content if is_single else None
    return Draft(
        status="single" if is_single else "voted",
        content=content or None,
        answers=panel.answers,
        tool_calls=fused_calls.calls,
        reason=f"tool calls of {', '.join(fused_calls.members)}, voted argument by argument",
        agreement=fused_calls.agreement,
        degraded=tuple(DegradedReason("invalid_call", member) for member in fused_calls.invalid),
    )


# -- drafts without a choice ------------------------------------------------------------------


def _draft_without_choice(case: Case, panel: Panel) -> Draft | None:
    """The draft of a panel that leaves no choice: one answer, none, or a sufficient first wave."""
    answers = panel.answers
    if panel.closed_by == "gate":
        return _gate_draft(case, answers)
    if len(answers) > 1 or (answers and answers[0].tool_calls):
        return None
    if answers:
        called_count = len(case.plan.members) - len(panel.skipped)
        reason = f"the only answer of {called_count} members"
        if called_count == 1:
            reason = "the only member"
        return Draft("single", answers[0].content, answers[0].member, answers, reason=reason)
    if len(panel.received) < len(case.plan.members):
        return Draft("expired", error="no member answered before the deadline")
    errors = sorted({_error_text(arrival) for arrival in panel.received.values()})
    return Draft("failed", error=f"every member failed ({', '.join(errors)})")


def _gate_draft(case: Case, answers: tuple[MemberAnswer, ...]) -> Draft:
    """The draft of a first wave that was sufficient."""
    groups = votes(answers, case.prompt.sampling.response_schema)
    winner = heaviest_group(groups, answers)[0][0] if groups else answers[0]
    second_wave = ", ".join(member.name for member in case.plan.members if member.wave)
    return Draft(
        status="voted" if len(answers) > 1 else "single",
        content=winner.content,
        winner=winner.member,
        answers=answers,
        reason=f"the edge is sure, {second_wave} not asked",
        agreement=share(groups) if groups else agreement(answers),
    )


def _error_text(arrival: ReceivedCandidate) -> str:
    error = arrival.candidate.error
    if error is None:
        return "empty_answer"
    return f"{error.code}: {error.param}" if error.param else error.code


# -- degraded reasons -------------------------------------------------------------------------


def degraded_reasons(case: Case, panel: Panel) -> tuple[DegradedReason, ...]:
    """Why a panel is not complete: members that were excluded, are missing, failed or flawed."""
    reasons = [
        DegradedReason("excluded", member.name, member.reason) for member in case.plan.excluded
    ]
    for member in case.plan.members:
        reason = _member_reason(case, panel, member)
        if reason and member.name not in panel.skipped:
            reasons.append(reason)
    return tuple(reasons)


def _member_reason(case: Case, panel: Panel, member: PlannedMember) -> DegradedReason | None:
    """Why a member has no part in the panel; None if it has, or if it was not needed."""
    arrival = panel.received.get(member.name)
    # Where a vote was decided early, whoever is missing could not have changed it
    # (docs/decisions/0016).
    if arrival is None and panel.closed_by in ("quorum", "deadline"):
        missing_share = member.weight / _total_weight(case)
        detail = f"{missing_share:.2f}:{panel.closed_by}"
        return DegradedReason("missing", member.name, detail)
    if arrival is None:
        return None
    if arrival.candidate.error:
        return DegradedReason("failed", member.name, arrival.candidate.error.code)
    if member.name in panel.flaws:
        return DegradedReason(panel.flaws[member.name], member.name)
    return None


def _total_weight(case: Case) -> float:
    """The weight of the pool, excluded members included."""
    plan = case.plan
    return sum(m.weight for m in plan.members) + sum(e.weight for e in plan.excluded)


def _cut_reasons(draft: Draft) -> tuple[DegradedReason, ...]:
    """Why a winner is degraded that was cut off at its token limit."""
    return tuple(
        DegradedReason("winner_cut", answer.member)
        for answer in draft.answers
        if answer.is_cut and answer.member == draft.winner
    )
