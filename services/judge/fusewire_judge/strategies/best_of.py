"""Best-of: choose one answer. Closed answers are voted, open ones judged."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from fusewire.contracts.degraded import DegradedReason
from fusewire_judge.judging.ballot import poll
from fusewire_judge.judging.tally import Tally
from fusewire_judge.model import Case, Draft, MakeCalls, MemberAnswer, Panel, Replies, Steps
from fusewire_judge.scoring.answers import (
    agreement,
    gain,
    heaviest_group,
    is_tied,
    medoid,
    share,
    votes,
)

MOST_TURNS = 4
"""Answers up to which each is put first once; beyond, a poll on two of them costs fewer calls
(docs/decisions/0014)."""


def best_of(case: Case, panel: Panel) -> Steps:
    """Choose one of at least two answers."""
    draft = vote(case, panel)
    if draft is not None:
        return draft
    return (yield from ask_judges(case, panel.answers, odds_of(case, panel)))


def odds_of(case: Case, panel: Panel) -> dict[str, float]:
    """By member, its odds of being right as learned from stored outcomes; only of open answers.

    The weights of votes on closed answers, and configured ones, are no odds.
    """
    if panel.kind != "open":
        return {}
    return {member.name: member.learned.get("open", 1.0) for member in case.plan.members}


def vote(
    case: Case,
    panel: Panel,
    answers: Sequence[MemberAnswer] | None = None,
    trail: Sequence[MemberAnswer] = (),
) -> Draft | None:
    """Choose the heaviest closed answer.

    Args:
        case: the fusion.
        panel: the panel.
        answers: the members' current answers, if they are no longer the panel's.
        trail: their earlier answers, which are counted too.

    Returns:
        None if the answers are open, or tied while there is a judge to ask.
    """
    current_answers = panel.answers if answers is None else answers
    groups = votes([*current_answers, *trail], case.prompt.sampling.response_schema)
    if panel.kind == "open" or not groups or (is_tied(groups) and case.plan.jurors):
        return None
    heaviest, tie_rule = heaviest_group(groups, current_answers)
    winner = _current_or_first(heaviest, current_answers)
    return Draft(
        status="voted",
        content=winner.content,
        winner=winner.member,
        answers=tuple(winner if a.member == winner.member else a for a in current_answers),
        reason=tie_rule or _vote_reason(list(groups.values())),
        agreement=share(groups),
    )


def _vote_reason(by_weight: Sequence[Sequence[MemberAnswer]]) -> str:
    """Why the first of several groups wins a vote: by number, or by the record of its members."""
    winners = by_weight[0]
    losers = list(chain.from_iterable(by_weight[1:]))
    if len(winners) > 1 and len(winners) >= max(map(len, by_weight)):
        return f"vote, {len(winners)} of {len(winners) + len(losers)} say the same"
    own_weight, rival_weight = sum(answer.weight for answer in winners), 0.0
    for count, weight in enumerate(sorted((a.weight for a in losers), reverse=True), 1):
        rival_weight += weight
        if rival_weight > own_weight:
            return f"vote by record, {count} of the {len(losers)} others would have to agree"
    return "vote by record, which no agreement of the others outweighs"


def _current_or_first(
    group: Sequence[MemberAnswer], current_answers: Sequence[MemberAnswer]
) -> MemberAnswer:
    """The first answer of a group that its member still gives, else the first of all.

    After a debate, the heaviest answer may be one that no member gives any more.
    """
    current = {answer.member: answer for answer in current_answers}
    for answer in group:
        if current.get(answer.member) == answer:
            return answer
    return group[0]


def ask_judges(case: Case, answers: Sequence[MemberAnswer], odds: Mapping[str, float]) -> Steps:
    """Choose by what the judges name and the members' odds; without a usable verdict, the medoid.

    Judges that do not agree with themselves or each other are asked once more; if it is still a
    tie, a rule decides (`_break_tie`, `_choose_winner`).

    Args:
        case: the fusion.
        answers: at least two.
        odds: by member, of being right.
    """
    jurors = case.plan.jurors
    if not jurors:
        return choose_medoid(answers, "no judge, the answer most like the others")
    tally = yield from poll(case, answers, "verdict", "listwise", jurors)
    leaders = tally.leaders(odds)
    if not leaders and tally.verdicts:
        return _fallback_draft(answers, tally)
    # Answers that no judge may vote on, because they are its own. One that was cut off by the
    # token limit is left out: it would only make a tie.
    unjudged_members = [
        a.member for a in answers if a.member not in tally.appearances and not a.is_cut
    ]
    # Judges by margin see no order, and would say the same again.
    may_change = any(not juror.by_margin for juror in jurors)
    if may_change and len(leaders) > 1 and len(tally.appearances) > 2:
        tally, leaders = yield from _break_tie(case, answers, tally, odds)
    winner, rule = _choose_winner(leaders, unjudged_members, answers)
    return Draft(
        status="selected" if tally.verdicts else "voted",
        content=winner.content,
        winner=winner.member,
        answers=tuple(answers),
        lineup=tally.lineup,
        parse_stage=tally.parse_stage,
        reason=rule
        or tally.reasons.get(winner.member, "right so often that no verdict outweighs it"),
        verdicts=tally.verdicts,
        agreement=agreement(answers),
        degraded=tuple(DegradedReason("verdict_void", fault) for fault in tally.faults),
    )


def _fallback_draft(answers: Sequence[MemberAnswer], tally: Tally) -> Draft:
    fault = tally.faults[0] if tally.faults else "no_answer"
    draft = choose_medoid(answers, "no usable verdict, the answer most like the others")
    return replace(
        draft,
        lineup=tally.lineup,
        parse_stage="fallback",
        verdicts=tally.verdicts,
        degraded=(DegradedReason("judge_failed", fault),),
    )


def _break_tie(
    case: Case, answers: Sequence[MemberAnswer], tally: Tally, odds: Mapping[str, float]
) -> Generator[MakeCalls, Replies, tuple[Tally, list[str]]]:
    """Poll the judges once more on a tie.

    They compare two of the leaders, in both orders again. But if each verdict named what it was
    shown first, and there are few answers, the trailing ones are put first in turn instead: what
    was never first had no chance with such a judge (docs/decisions/0014).

    Returns:
        (tally of both polls, leaders)
    """
    leaders, jurors = tally.leaders(odds), case.plan.jurors
    trailing = [member for member in tally.appearances if member not in leaders]
    if trailing and tally.follows_place and len(tally.appearances) <= MOST_TURNS:
        turns = yield from poll(case, answers, "turn", "listwise", jurors, firsts=trailing)
        tally = tally.plus(turns)
        return tally, tally.leaders(odds)
    leading_answers = [answer for answer in answers if answer.member in leaders]
    first_two = sorted(leading_answers, key=preference(answers))[:2]
    pair_members = [answer.member for answer in first_two]
    pair = [answer for answer in answers if answer.member in pair_members]
    pair_tally = yield from poll(case, pair, "pair", "pair", jurors)
    leaders = pair_tally.leaders(odds) or [answer.member for answer in pair]
    return tally.plus(pair_tally), leaders


def _choose_winner(
    leaders: Sequence[str], unjudged_members: Sequence[str], answers: Sequence[MemberAnswer]
) -> tuple[MemberAnswer, str | None]:
    """The only one of the leaders and unjudged members, or the one that the rule prefers.

    Returns:
        (winner, the rule if one was applied)
    """
    finalists = [a for a in answers if a.member in leaders or a.member in unjudged_members]
    if len(finalists) == 1:
        return finalists[0], None
    why = "the judges are tied"
    if unjudged_members:
        why = "a judge does not vote on its own answer"
    winner = min(finalists, key=preference(answers))
    return winner, f"{why}; most like the others, then by weight, then by cost"


def preference(
    answers: Sequence[MemberAnswer],
) -> Callable[[MemberAnswer], tuple[float, float, float]]:
    """A sort key: the answer most like the others first, then the heaviest, then the cheapest."""

    def key(answer: MemberAnswer) -> tuple[float, float, float]:
        cost = math.inf if answer.cost_usd is None else answer.cost_usd
        # Rounded: sums that mean the same may differ in their last digits.
        return (-round(gain(answer, answers), 9), -answer.weight, cost)

    return key


def choose_medoid(answers: Sequence[MemberAnswer], reason: str) -> Draft:
    """Choose the answer most like the others."""
    winner = medoid(answers)
    return Draft(
        status="voted",
        content=winner.content,
        winner=winner.member,
        answers=tuple(answers),
        reason=reason,
        agreement=agreement(answers),
    )
