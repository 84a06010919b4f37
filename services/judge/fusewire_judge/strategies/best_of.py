"""Best-of: closed answers are voted, open ones judged."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fusewire_judge.judging.ballot import poll
from fusewire_judge.model import Case, Draft, MemberAnswer, Panel, Steps
from fusewire_judge.scoring.answers import agreement, gain, is_tied, medoid, share, votes

MOST_TURNS = 4
"""Answers up to which each is put first once; beyond, the pair costs fewer calls."""


def best_of(case: Case, panel: Panel) -> Steps:
    """Choose one of at least two answers."""
    voted = vote(case, panel)
    if voted is not None:
        return voted
    return (yield from judged(case, panel.answers))


def vote(
    case: Case,
    panel: Panel,
    answers: Sequence[MemberAnswer] | None = None,
    trail: Sequence[MemberAnswer] = (),
) -> Draft | None:
    """The heaviest closed answer; None if they are open, or tied while there is a judge to ask.

    Args:
        case: the fusion.
        panel: the panel.
        said: the answers on the table, where they are no longer the panel's.
        trail: earlier answers that are counted too.
    """
    current_said = panel.answers if answers is None else answers
    groups = votes([*current_said, *trail], case.prompt.sampling.response_schema)
    if panel.kind == "open" or not groups or (is_tied(groups) and case.plan.jurors):
        return None
    heaviest = next(iter(groups.values()))
    current = {one.member: one for one in current_said}
    # After a debate the heaviest answer may be one that nobody holds any more.
    winner = next((one for one in heaviest if current.get(one.member) == one), heaviest[0])
    behind, counted = len(heaviest), sum(len(g) for g in groups.values())
    rule = (
        "tie, the first of the pool"
        if is_tied(groups)
        else f"vote, {behind} of {counted} say the same"
    )
    return Draft(
        status="voted",
        content=winner.content,
        winner=winner.member,
        answers=tuple(winner if one.member == winner.member else one for one in current_said),
        reason=rule,
        agreement=share(groups),
    )


def judged(case: Case, answers: Sequence[MemberAnswer]) -> Steps:
    """The answer that the judges name; without a usable verdict, the one most like the others.

    Judges that do not agree with themselves or each other are asked about the two that lead,
    in both orders again. Where each named what it was shown first, and there are few answers,
    the others are put first in turn instead. If it is still a tie, a rule settles it.
    """
    if not case.plan.jurors:
        return by_likeness(answers, "no judge, the answer most like the others")
    count = yield from poll(case, answers, "verdict", "listwise", case.plan.jurors)
    leaders = count.leaders()
    if not leaders and count.verdicts:
        why = count.faults[0] if count.faults else "no_answer"
        fallback = by_likeness(answers, "no usable verdict, the answer most like the others")
        return replace(
            fallback,
            shown=count.shown,
            rung="fallback",
            verdicts=count.verdicts,
            degraded=(f"judge_failed:{why}",),
        )
    # Answers that no judge may vote on, because they are its own. One that was cut off is not worth a doubt.
    unjudged = [one.member for one in answers if one.member not in count.seen and not one.is_cut]
    # Judges by margin see no order, and would say the same again.
    may_change = any(not juror.by_margin for juror in case.plan.jurors)
    if may_change and len(leaders) > 1 and len(count.seen) > 2:
        others = [name for name in count.seen if name not in leaders]
        if others and count.follows_place and len(count.seen) <= MOST_TURNS:
            # What was never first had no chance with a judge that names what it sees first.
            turns = yield from poll(
                case, answers, "turn", "listwise", case.plan.jurors, firsts=others
            )
            count = count.plus(turns)
            leaders = count.leaders()
        else:
            pair = [one for one in answers if one.member in _two(leaders, answers)]
            decisive = yield from poll(case, pair, "pair", "pair", case.plan.jurors)
            leaders = decisive.leaders() or [one.member for one in pair]
            count = count.plus(decisive)
    winner, rule = _settle([*leaders, *unjudged], answers, is_recused=bool(unjudged))
    return Draft(
        status="fused" if count.verdicts else "voted",
        content=winner.content,
        winner=winner.member,
        answers=tuple(answers),
        shown=count.shown,
        rung=count.rung,
        reason=rule or count.reasons.get(winner.member),
        verdicts=count.verdicts,
        agreement=agreement(answers),
        degraded=tuple(f"verdict_void:{fault}" for fault in count.faults),
    )


def _two(leaders: Sequence[str], answers: Sequence[MemberAnswer]) -> list[str]:
    """Of several that lead alike, the two that the rule puts first."""
    return [
        one.member
        for one in sorted((s for s in answers if s.member in leaders), key=_preference(answers))[:2]
    ]


def _settle(
    names: Sequence[str], answers: Sequence[MemberAnswer], *, is_recused: bool
) -> tuple[MemberAnswer, str | None]:
    """The one that is left, or the one that the rule prefers: most like the others, then heaviest, then cheapest."""
    left = [one for one in answers if one.member in names]
    if len(left) == 1:
        return left[0], None
    why = "a judge does not vote on its own answer" if is_recused else "the judges are tied"
    return min(
        left, key=_preference(answers)
    ), f"{why}; most like the others, then by weight, then by cost"


def _preference(
    answers: Sequence[MemberAnswer],
) -> Callable[[MemberAnswer], tuple[float, float, float]]:
    def key(one: MemberAnswer) -> tuple[float, float, float]:
        cost = math.inf if one.cost_usd is None else one.cost_usd
        return (-round(gain(one, answers), 9), -one.weight, cost)

    return key


def by_likeness(answers: Sequence[MemberAnswer], reason: str) -> Draft:
    """The medoid, as a draft."""
    middle = medoid(answers)
    return Draft(
        status="voted",
        content=middle.content,
        winner=middle.member,
        answers=tuple(answers),
        reason=reason,
        agreement=agreement(answers),
    )
