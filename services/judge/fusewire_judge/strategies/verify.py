"""Verify: each distinct answer is checked on its own, and the one that is most probably right wins.

What is known before counts too: closed answers bring the weight of the members that gave them,
open ones the odds of their member (docs/fusion.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusewire.contracts.degraded import DegradedReason
from fusewire_judge.judging.checks import CheckResult, CheckTally, check, most_swing
from fusewire_judge.learning.weights import COINCIDENCE
from fusewire_judge.model import Case, Draft, MemberAnswer, Panel, Steps
from fusewire_judge.scoring.answers import agreement, heaviest_group, share, votes
from fusewire_judge.scoring.rules import RULE_EDGE, rule_fault
from fusewire_judge.strategies.best_of import odds_of, preference

VOTE_EDGE = math.log(1 / COINCIDENCE)
"""The log odds of a vote of weight 1: of a member that is right half of the time, where two wrong
answers are the same with probability `COINCIDENCE` (learning/weights.py)."""


@dataclass(frozen=True)
class _AnswerGroup:
    """Answers that say the same.

    Attributes:
        answers: those without a fault by rule first.
        fault: of the first one, by rule.
        log_odds: of being right, before any judge is asked.
    """

    answers: tuple[MemberAnswer, ...]
    fault: str | None
    log_odds: float


def verify(case: Case, panel: Panel) -> Steps:
    """Check the distinct answers by rule, then by the judges; choose the most probable one.

    No judge is asked where all say the same, or where no check could change the choice.
    """
    distinct = _distinct_answers(case, panel)
    if len(distinct) < 2:
        return _draft(case, panel, distinct[0], reason="all say the same, nothing to check")
    jurors = case.plan.jurors
    first, second = sorted((each.log_odds for each in distinct), reverse=True)[:2]
    if not jurors or first - second > most_swing(jurors) + 1e-9:
        winner = _leader(panel, distinct, CheckTally())
        return _draft(case, panel, winner, reason=_unchecked_reason(case, winner))
    checks = yield from check(case, [each.answers for each in distinct], jurors)
    winner = _leader(panel, distinct, checks)
    draft = _draft(case, panel, winner, reason=_reason(checks, distinct.index(winner)))
    if not checks.results:
        fault = checks.faults[0] if checks.faults else "no_answer"
        return replace(
            draft,
            verdicts=checks.verdicts,
            parse_stage="fallback",
            degraded=(DegradedReason("judge_failed", fault),),
        )
    return replace(
        draft,
        status="selected",
        verdicts=checks.verdicts,
        parse_stage=checks.parse_stage,
        degraded=tuple(DegradedReason("verdict_void", fault) for fault in checks.faults),
    )


def _distinct_answers(case: Case, panel: Panel) -> list[_AnswerGroup]:
    """The distinct answers: closed ones by their value, open ones by their text."""
    if panel.kind != "open":
        groups = votes(panel.answers, case.prompt.sampling.response_schema)
        return [_group(same, _vote_log_odds(same)) for same in groups.values()]
    odds = odds_of(case, panel)
    by_text: dict[str, list[MemberAnswer]] = {}
    for answer in panel.answers:
        by_text.setdefault(" ".join(answer.content.split()), []).append(answer)
    distinct = []
    for same in by_text.values():
        best_odds = max(odds.get(answer.member, 1.0) for answer in same)
        distinct.append(_group(same, math.log(best_odds)))
    return distinct


def _vote_log_odds(same: Sequence[MemberAnswer]) -> float:
    return VOTE_EDGE * sum(answer.weight for answer in same)


def _group(same: Sequence[MemberAnswer], log_odds: float) -> _AnswerGroup:
    faults = {answer.member: rule_fault(answer.content) for answer in same}
    answers = tuple(sorted(same, key=lambda answer: faults[answer.member] is not None))
    fault = faults[answers[0].member]
    return _AnswerGroup(answers, fault, log_odds + (RULE_EDGE if fault else 0.0))


def _leader(panel: Panel, distinct: Sequence[_AnswerGroup], checks: CheckTally) -> _AnswerGroup:
    """The most probable answer; of equal ones, that of the best record, then most like the rest."""
    scores = [
        each.log_odds + checks.evidence.get(number, 0.0) for number, each in enumerate(distinct)
    ]
    leaders = [
        each for each, score in zip(distinct, scores, strict=True) if score > max(scores) - 1e-9
    ]
    if panel.kind == "open":
        key = preference(panel.answers)
        return min(leaders, key=lambda each: key(each.answers[0]))
    groups = {str(number): each.answers for number, each in enumerate(leaders)}
    heaviest, _ = heaviest_group(groups, panel.answers)
    return next(each for each in leaders if each.answers is heaviest)


def _unchecked_reason(case: Case, winner: _AnswerGroup) -> str:
    reason = "no judge, the most probable answer"
    if case.plan.jurors:
        reason = "so probable that no check could change it"
    return f"{reason}; it {winner.fault}" if winner.fault else reason


def _reason(checks: CheckTally, number: int) -> str:
    """Why an answer was chosen: the judge's own words, and how many checks it passed."""
    results: Sequence[CheckResult] = checks.results.get(number, ())
    if not results:
        return "not checked, and more probable than what was"
    n_passes = sum(result.is_pass for result in results)
    counts = f"passed {n_passes} of {len(results)} check{'s' if len(results) > 1 else ''}"
    reasons = [result.reason for result in results if result.is_pass]
    return f"{reasons[0]} ({counts})" if reasons else f"{counts}, and no other answer is likelier"


def _draft(case: Case, panel: Panel, winner: _AnswerGroup, *, reason: str) -> Draft:
    answer = winner.answers[0]
    is_closed = panel.kind != "open"
    groups = votes(panel.answers, case.prompt.sampling.response_schema) if is_closed else {}
    return Draft(
        status="voted",
        content=answer.content,
        winner=answer.member,
        answers=panel.answers,
        reason=reason,
        agreement=share(groups) if groups else agreement(panel.answers),
    )
