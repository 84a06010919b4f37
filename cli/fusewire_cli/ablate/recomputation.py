"""The outcome of a stored fusion without one member. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusewire.analysis.ablation import Basis, WinRates
from fusewire.contracts import Outcome, Plan, ToolCall
from fusewire_cli.ablate.course import Course, CourseEnd, StoredCase
from fusewire_judge.model import Ask, Case, Decided, Decision, MemberAnswer
from fusewire_judge.scoring.answers import canonical, medoid


@dataclass(frozen=True)
class Recomputation:
    """The outcome of a fusion without one member."""

    basis: Basis
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    winner: str | None = None
    options: tuple[MemberAnswer, ...] = ()
    """Answers that a judge would choose from, the winner among them, if nothing that it said of
    this prompt tells which."""
    judge_calls: int = 0
    """How many calls of judges would be the first to tell more; 0 if judges cannot."""


def recompute_all(
    old: StoredCase, members: Sequence[str], win_rates: WinRates
) -> dict[str, Recomputation]:
    """Decide a fusion again without each of its members in turn.

    The weights are those of the plan. A judge by margin rates each answer by itself, so what it
    would choose among the others follows from what it said. What a judge wrote is no such rule:
    the stored verdicts then say who would have won (`estimated`), or that the winner was another
    member in any case (`kept`). A merge or a debate without a member would be another text.

    Where the judge itself was late, so that with all members the outcome would be another one,
    nothing is exact.

    Args:
        old: the fusion.
        members: who is left out.
        win_rates: of the pool's models.
    """
    is_repeatable = repeats(old)
    return {member: _recompute(old, member, win_rates, is_repeatable) for member in members}


def repeats(old: StoredCase) -> bool:
    """Whether the course with all members ends as the stored fusion did."""
    end = Course(old, None).follow()
    if end is None or _panel_members(end) != old.panel_members:
        return False
    if not isinstance(end.decision, Decided):
        return True
    draft, outcome = end.decision.draft, old.outcome
    return (draft.winner, draft.content, draft.tool_calls) == (
        outcome.winner,
        outcome.content,
        outcome.tool_calls,
    )


def _panel_members(end: CourseEnd) -> frozenset[str]:
    return frozenset(answer.member for answer in end.panel.answers) if end.panel else frozenset()


def _recompute(
    old: StoredCase, member: str, win_rates: WinRates, is_repeatable: bool
) -> Recomputation:
    end = Course(old, member).follow()
    if end is None:
        return Recomputation("unknown")
    exact: Basis = "recomputed" if is_repeatable and end.is_complete else "estimated"
    if end.panel and _panel_members(end) == old.panel_members:
        # It had no part in the outcome.
        outcome = old.outcome
        return Recomputation(exact, outcome.content, outcome.tool_calls, outcome.winner)
    if isinstance(end.decision, Decided):
        draft = end.decision.draft
        return Recomputation(exact, draft.content, draft.tool_calls, draft.winner)
    judge_calls = _count_judge_calls(end.case.plan, end.decision)
    if end.panel is None or any(call.kind != "verdict" for call in end.decision.calls):
        return Recomputation("unknown", judge_calls=judge_calls)
    estimate = _estimate(old, end.case, end.panel.answers, win_rates)
    return replace(estimate, judge_calls=judge_calls)


def _count_judge_calls(plan: Plan, decision: Decision) -> int:
    """How many calls of judges a decision asks for; none where members are asked too.

    A debate calls members, if not at once, then after another choice of answers.
    """
    if not isinstance(decision, Ask) or plan.mode == "debate":
        return 0
    is_by_judges = all(call.member is None for call in decision.calls)
    return len(decision.calls) if is_by_judges else 0


def _estimate(
    old: StoredCase, case: Case, answers: Sequence[MemberAnswer], win_rates: WinRates
) -> Recomputation:
    """The answer that a judge would have chosen, by the verdicts that are stored."""
    outcome = old.outcome
    winners = [v.winner for v in outcome.verdicts if v.winner and not v.void and v.kind != "guard"]
    if winners and any(answer.member == outcome.winner for answer in answers):
        return Recomputation("kept", outcome.content, outcome.tool_calls, outcome.winner)
    if outcome.judge_rung == "fallback":
        # No verdict could be used, and the answer most like the others was taken.
        return _as_estimate(medoid(answers))
    wins = Counter(winners)
    most = max(wins[answer.member] for answer in answers)
    leaders = [answer for answer in answers if wins[answer.member] == most]
    return _as_estimate(_best(case, leaders, win_rates), leaders)


def _as_estimate(answer: MemberAnswer, options: Sequence[MemberAnswer] = ()) -> Recomputation:
    return Recomputation(
        "estimated", answer.content, answer.tool_calls, answer.member, tuple(options)
    )


def _best(case: Case, leaders: Sequence[MemberAnswer], win_rates: WinRates) -> MemberAnswer:
    """The answer of the model with the best win rate."""
    models = {m.name: m.model for m in case.plan.members}
    best_model = win_rates.best([models[answer.member] for answer in leaders])
    of_best = [answer for answer in leaders if models[answer.member] == best_model]
    # The medoid is the judge's own choice where no verdict can be used.
    return of_best[0] if of_best else medoid(leaders)


def is_same_answer(first: Outcome, second: Recomputation, schema: Mapping[str, Any] | None) -> bool:
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
