"""Decide a stored fusion again without one member, by the judge's own strategies. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from fusewire.analysis.ablation import Basis, WinRates
from fusewire.contracts import Call, Candidate, Outcome, Plan, Round, ToolCall
from fusewire.store.history import History
from fusewire_judge.model import Ask, Case, Decided, Decision, MemberAnswer, ReceivedCandidate
from fusewire_judge.panel.convene import convene
from fusewire_judge.panel.progress import split_members
from fusewire_judge.scoring.answers import canonical, medoid
from fusewire_judge.strategies.decide import decide


@dataclass(frozen=True)
class Recomputation:
    """The outcome of a fusion without one member."""

    basis: Basis
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    winner: str | None = None
    judge_calls: int = 0
    """How many calls of judges would be the first to tell more; 0 if judges cannot."""


@dataclass(frozen=True)
class StoredCase:
    """A fusion with an outcome, as the judge saw it when it decided."""

    case: Case
    outcome: Outcome
    late: Mapping[tuple[int, str], ReceivedCandidate]
    """What came after the outcome."""
    closed_at: datetime
    """When the panel had closed: the first request of the strategy, else the outcome."""


def stored_case(fusion: History) -> StoredCase | None:
    """The case of a fusion; None if it was never planned, was cancelled, or has no panel."""
    plan, outcome = fusion.plan, fusion.outcome
    if plan is None or outcome is None or outcome.status == "cancelled" or not outcome.answers:
        return None
    in_time: dict[tuple[int, str], ReceivedCandidate] = {}
    late: dict[tuple[int, str], ReceivedCandidate] = {}
    for arrival in fusion.received:
        candidate = arrival.candidate
        arrivals = late if arrival.is_late else in_time
        arrivals[candidate.round, candidate.call] = ReceivedCandidate(
            candidate, arrival.received_at, arrival.after_rounds
        )
    rounds = tuple(round_ for round_, _ in fusion.rounds)
    request_times = [at for round_, at in fusion.rounds if not round_.is_panel]
    return StoredCase(
        case=Case(fusion.prompt, plan, rounds, in_time),
        outcome=outcome,
        late=late,
        closed_at=min(request_times, default=outcome.finished_at),
    )


def recompute(old: StoredCase, member: str | None, win_rates: WinRates) -> Recomputation:
    """Decide a fusion without a member.

    The weights are those of the plan. A judge by margin rates each answer by itself, so what it
    would choose among the others follows from what it said. What a judge wrote is no such rule:
    the stored verdicts then say who would have won (`estimated`), or that the winner was another
    member in any case (`kept`). A merge or a debate without a member would be another text.

    Args:
        old: the fusion.
        member: who is left out; None for nobody, which gives the stored outcome.
        win_rates: of the pool's models.
    """
    outcome = old.outcome
    if member is not None and not _takes_part(outcome, member):
        return Recomputation("recomputed", outcome.content, outcome.tool_calls, outcome.winner)
    case, decision, is_exact = _decide(old, member)
    if isinstance(decision, Ask) and _is_by_margin(decision):
        decision = _answer_by_margin(old, case, decision)
    if isinstance(decision, Decided):
        draft = decision.draft
        basis: Basis = "recomputed" if is_exact else "estimated"
        return Recomputation(basis, draft.content, draft.tool_calls, draft.winner)
    judge_calls = _count_judge_calls(case.plan, decision)
    if not isinstance(decision, Ask) or any(call.kind != "verdict" for call in decision.calls):
        return Recomputation("unknown", judge_calls=judge_calls)
    return replace(_estimate(old, case, member, win_rates), judge_calls=judge_calls)


def _count_judge_calls(plan: Plan, decision: Decision) -> int:
    """How many calls of judges a decision asks for; none where members are asked too.

    A debate calls members, if not at once, then after another choice of answers.
    """
    if not isinstance(decision, Ask) or plan.mode == "debate":
        return 0
    is_by_judges = all(call.member is None for call in decision.calls)
    return len(decision.calls) if is_by_judges else 0


def _takes_part(outcome: Outcome, member: str) -> bool:
    """Whether a member's answer was one of those that the outcome was made of."""
    return any(a.member == member and a.weight is not None for a in outcome.answers)


# -- the case without a member ----------------------------------------------------------------


def _decide(old: StoredCase, member: str | None) -> tuple[Case, Decision, bool]:
    """Decide on the panel without a member.

    Returns:
        (the case, the decision, whether the panel would have closed at the same time)
    """
    case = _without(old.case, member)
    gate_decision = _decide_at_gate(old, case)
    if gate_decision is not None:
        return case, gate_decision, True
    decision = decide(case, old.closed_at)
    _, second_wave = split_members(case)
    if second_wave or not _is_open(case, decision):
        return case, decision, True
    # Without this member the panel would have waited for others. If they came too late for the
    # outcome, they would have been in time.
    late = {key: replace(arrival, after_rounds=0) for key, arrival in old.late.items()}
    case = _without(replace(case, received={**late, **case.received}), member)
    return case, decide(_past_deadline(case, old.closed_at), _end(case, old.closed_at)), False


def _without(case: Case, member: str | None) -> Case:
    """The case when the panel closed, without a member.

    The rounds keep the member's calls: their numbers are what tells a candidate's place.
    """
    members = tuple(m for m in case.plan.members if m.name != member)
    arrivals = {
        key: arrival
        for key, arrival in case.received.items()
        if arrival.candidate.member is None or arrival.candidate.member != member
    }
    plan = case.plan.model_copy(update={"members": members})
    return Case(case.prompt, plan, case.panel_rounds, arrivals)


def _decide_at_gate(old: StoredCase, case: Case) -> Decided | None:
    """The decision of the first wave alone, if it suffices without the member that is left out."""
    if not case.rounds or not any(member.wave for member in case.plan.members):
        return None
    first_wave = {
        key: arrival
        for key, arrival in case.received.items()
        if arrival.candidate.round == 0 and arrival.after_rounds == 0
    }
    at = max((a.received_at for a in first_wave.values()), default=old.closed_at)
    decision = decide(replace(case, rounds=(), received=first_wave), at)
    return decision if isinstance(decision, Decided) and _is_by_gate(decision) else None


def _is_by_gate(decision: Decided) -> bool:
    return decision.panel is not None and decision.panel.closed_by == "gate"


def _is_open(case: Case, decision: Decision) -> bool:
    """Whether the panel waits for members of the first wave, or calls one of them again."""
    if isinstance(decision, Decided):
        return False
    if not isinstance(decision, Ask):
        return True
    first_wave = {member.name for member in case.plan.members if not member.wave}
    return all(call.kind == "answer" and call.member in first_wave for call in decision.calls)


def _end(case: Case, closed_at: datetime) -> datetime:
    return max(closed_at, case.plan.panel_deadline_at)


def _past_deadline(case: Case, closed_at: datetime) -> Case:
    """The case with time left to judge after the panel's deadline."""
    deadline_at = _end(case, closed_at) + timedelta(minutes=1)
    return replace(case, plan=case.plan.model_copy(update={"deadline_at": deadline_at}))


# -- judges by margin -------------------------------------------------------------------------


def _is_by_margin(decision: Ask) -> bool:
    return all(call.kind == "verdict" and call.choices for call in decision.calls)


def _answer_by_margin(old: StoredCase, case: Case, ask: Ask) -> Decision:
    """Answer the calls of judges by margin from what they said of each answer before."""
    ratings, samples = _ratings(old.case)
    arrivals = dict(case.received)
    for call in ask.calls:
        sample = samples.get(call.model)
        logprobs = [ratings.get((call.model, text)) for text in call.choices]
        if sample is None or None in logprobs:
            return ask
        candidate = sample.model_copy(
            update={
                "round": ask.number,
                "call": call.name,
                "choice_logprobs": tuple(logprobs),
            }
        )
        arrivals[ask.number, call.name] = ReceivedCandidate(candidate, old.closed_at, ask.number)
    round_ = _as_round(case.plan, ask)
    answered_case = replace(case, rounds=(*case.rounds, round_), received=arrivals)
    return decide(_past_deadline(answered_case, old.closed_at), old.closed_at)


def _ratings(case: Case) -> tuple[dict[tuple[str, str], float], dict[str, Candidate]]:
    """By model and text, the log probability; and by model, a candidate that held some."""
    ratings: dict[tuple[str, str], float] = {}
    samples: dict[str, Candidate] = {}
    calls = chain.from_iterable(_numbered_calls(round_) for round_ in case.rounds)
    for number, call in calls:
        arrival = case.received.get((number, call.name))
        if arrival and arrival.candidate.choice_logprobs:
            samples[call.model] = arrival.candidate
            # One that rated another number of texts was void.
            rated_texts = zip(call.choices, arrival.candidate.choice_logprobs, strict=False)
            ratings |= {(call.model, text): logprob for text, logprob in rated_texts}
    return ratings, samples


def _numbered_calls(round_: Round) -> list[tuple[int, Call]]:
    return [(round_.round, call) for call in round_.calls]


def _as_round(plan: Plan, ask: Ask) -> Round:
    calls: tuple[Call, ...] = ask.calls
    return Round(
        fusion_id=plan.fusion_id,
        round=ask.number,
        tenant=plan.tenant,
        pool=plan.pool,
        calls=calls,
        residency=plan.residency,
        priority=plan.priority,
        seed=plan.seed,
        deadline_at=ask.until,
    )


# -- judges that write ------------------------------------------------------------------------


def _estimate(
    old: StoredCase, case: Case, member: str | None, win_rates: WinRates
) -> Recomputation:
    """The answer that a judge would have chosen, by the verdicts that are stored."""
    outcome = old.outcome
    panel = convene(_past_deadline(case, old.closed_at), _end(case, old.closed_at))
    answers: Sequence[MemberAnswer] = getattr(panel, "answers", ())
    if not answers:
        return Recomputation("unknown")
    winners = [v.winner for v in outcome.verdicts if v.winner and not v.void and v.kind != "guard"]
    if winners and outcome.winner != member:
        return Recomputation("kept", outcome.content, outcome.tool_calls, outcome.winner)
    if outcome.judge_rung == "fallback":
        # No verdict could be used, and the answer most like the others was taken.
        return _as_estimate(medoid(answers))
    return _as_estimate(_best(case, answers, winners, win_rates))


def _as_estimate(answer: MemberAnswer) -> Recomputation:
    return Recomputation("estimated", answer.content, answer.tool_calls, answer.member)


def _best(
    case: Case, answers: Sequence[MemberAnswer], winners: Sequence[str], win_rates: WinRates
) -> MemberAnswer:
    """The answer most verdicts named; on a tie that of the model with the best win rate."""
    wins = Counter(winners)
    most = max(wins[answer.member] for answer in answers)
    leaders = [answer for answer in answers if wins[answer.member] == most]
    models = {m.name: m.model for m in case.plan.members}
    best_model = win_rates.best([models[answer.member] for answer in leaders])
    of_best = [answer for answer in leaders if models[answer.member] == best_model]
    # The medoid is the judge's own choice where no verdict can be used.
    return of_best[0] if of_best else medoid(leaders)


def is_same_answer(
    first: Recomputation | Outcome, second: Recomputation, schema: Mapping[str, Any] | None
) -> bool:
    """Whether two outcomes say the same: equal closed answers, equal texts, or equal calls."""
    if _arguments(first.tool_calls) != _arguments(second.tool_calls):
        return False
    if first.content is None or second.content is None:
        return first.content == second.content
    if first.content.strip() == second.content.strip():
        return True
    value = canonical(first.content, schema)
    return value is not None and value == canonical(second.content, schema)


def _arguments(calls: Sequence[ToolCall]) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in calls]
