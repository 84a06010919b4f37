"""Ask judges which answer is best. Pure.

A judge that writes its verdict sees two opposite orders, each call with labels of its own. A judge
by margin rates each answer by its log probability, and sees no order (docs/decisions/0038).
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import chain

from fusewire.contracts import CONTROL, Call, Candidate, PlannedJudge, Sampling, VerdictKind
from fusewire_judge.judging.ask import ask_readable, read_reply
from fusewire_judge.judging.parse import UnreadableVerdict
from fusewire_judge.judging.prompts import (
    Lineup,
    clean,
    conversation,
    draw_control,
    make_lineup,
    verdict_messages,
)
from fusewire_judge.judging.tally import Choice, JudgeCall, Tally, tally_choices
from fusewire_judge.model import Case, MakeCalls, MemberAnswer, Replies

JUDGE_TOKENS = 256
SLOPE = 2.9
"""The odds of a right answer against a wrong one, as a multiple of the difference of their mean log
probabilities per token: a logistic regression on the first half of `make bench-judge`'s pairs, with
a model of 1.5B parameters as the judge. A smaller judge deserves less weight, and gets it: its
differences are smaller too."""


def poll(
    case: Case,
    answers: Sequence[MemberAnswer],
    turn: str,
    kind: VerdictKind,
    jurors: Sequence[PlannedJudge],
    *,
    firsts: Sequence[str] = (),
) -> Generator[MakeCalls, Replies, Tally]:
    """Ask every judge which answer is best: in two opposite orders, or by margin in one call.

    A judge is not shown answers of its own model among those of others, and has no vote where that
    leaves fewer than two. A guard compares the merge with the best answer, so both are shown.

    Args:
        case: the fusion.
        answers: at least two.
        turn: what the calls are named for.
        kind: of the verdicts, for the record.
        jurors: the judges to ask.
        firsts: members to be shown first, each in one call, in place of the two orders.

    Yields:
        The calls to make; those whose output cannot be parsed, once more.
    """
    calls_by_judge = []
    for number, juror in enumerate(jurors, 1):
        shown_answers = _shown_answers(case, answers, juror, kind)
        calls_by_judge.append(_judge_calls(case, shown_answers, f"{turn}-{number}", juror, firsts))
    choices = yield from ask_readable(
        list(chain.from_iterable(calls_by_judge)),
        make_call=lambda call, suffix: _make_call(case, call, suffix),
        read=lambda reply, call, suffix: _choice(reply, call, kind, is_repeat=bool(suffix)),
        may_repeat=lambda call: not call.is_by_margin,
    )
    return tally_choices(calls_by_judge, choices, kind)


# -- the calls --------------------------------------------------------------------------------


def _shown_answers(
    case: Case, answers: Sequence[MemberAnswer], juror: PlannedJudge, kind: VerdictKind
) -> Sequence[MemberAnswer]:
    """Exclude the answers of the judge's own model, unless all are, or it may judge its own."""
    if juror.sees_own or kind == "guard":
        return answers
    # A judge finds its own wrong answer more probable than another's right one
    # (docs/decisions/0038).
    models = {member.name: member.model for member in case.plan.members}
    return [answer for answer in answers if models.get(answer.member) != juror.model] or answers


def _judge_calls(
    case: Case,
    answers: Sequence[MemberAnswer],
    key: str,
    juror: PlannedJudge,
    firsts: Sequence[str],
) -> list[JudgeCall]:
    """The calls of one judge, one for each line-up; none if there are fewer than two answers."""
    if len(answers) < 2:
        return []
    seed = case.plan.seed
    candidates = _complete_answers(answers) if juror.by_margin else list(answers)
    control = draw_control(seed, key, case.plan.policy.control_share)
    if control:
        candidates.append(MemberAnswer(CONTROL, 0.0, control[1], 0))
    lineups = _lineups(candidates, seed, key, juror, firsts)
    control_kind = control[0] if control else None
    return [
        JudgeCall(f"{key}-{number}", juror, lineup, control_kind)
        for number, lineup in enumerate(lineups, 1)
    ]


def _lineups(
    candidates: Sequence[MemberAnswer],
    seed: int,
    key: str,
    juror: PlannedJudge,
    firsts: Sequence[str],
) -> list[Lineup]:
    """One line-up for a judge by margin, two opposite ones for others, or one for each first."""
    if juror.by_margin:
        return [make_lineup(candidates, seed, key)]
    if not firsts:
        return [
            make_lineup(candidates, seed, key),
            make_lineup(candidates, seed, key, is_reversed=True),
        ]
    members = {candidate.member for candidate in candidates}
    return [
        make_lineup(candidates, seed, f"{key}-{name}", first=name)
        for name in firsts
        if name in members
    ]


def _complete_answers(answers: Sequence[MemberAnswer]) -> list[MemberAnswer]:
    """Exclude answers that were cut off, if two others are left.

    An answer without an end is not less probable for that, so a margin would not punish it
    (docs/decisions/0038).
    """
    complete_answers = [answer for answer in answers if not answer.is_cut]
    return complete_answers if len(complete_answers) > 1 else list(answers)


def _make_call(case: Case, judge_call: JudgeCall, suffix: str) -> Call:
    criteria = case.plan.policy.criteria
    if judge_call.is_by_margin:
        return Call(
            name=judge_call.name + suffix,
            kind="verdict",
            model=judge_call.juror.model,
            messages=conversation(case.prompt, criteria),
            expected_tokens=1,
            choices=tuple(clean(answer.content) for answer in judge_call.lineup.answers),
        )
    return Call(
        name=judge_call.name + suffix,
        kind="verdict",
        model=judge_call.juror.model,
        messages=verdict_messages(case.prompt, judge_call.lineup, criteria),
        sampling=Sampling(response_schema=judge_call.schema),
        # No limit of a hosted model, which needs room for thought (docs/decisions/0035).
        expected_tokens=JUDGE_TOKENS,
    )


# -- the replies ------------------------------------------------------------------------------


def _choice(
    reply: Candidate | None, call: JudgeCall, kind: VerdictKind, *, is_repeat: bool
) -> Choice | UnreadableVerdict:
    if call.is_by_margin:
        return _margin_choice(reply, call, kind)
    choice = _written_choice(reply, call)
    if is_repeat and isinstance(choice, Choice):
        return replace(choice, parse_stage="reasked")
    return choice


def _written_choice(reply: Candidate | None, call: JudgeCall) -> Choice | UnreadableVerdict:
    output = read_reply(reply, call.schema)
    if isinstance(output, UnreadableVerdict):
        return output
    winner = call.lineup.by_label(output.value["winner"]).member
    return Choice(winner, output.value["reason"], output.parse_stage)


def _margin_choice(
    reply: Candidate | None, call: JudgeCall, kind: VerdictKind
) -> Choice | UnreadableVerdict:
    """Choose the answer with the highest posterior odds (Bayes).

    The prior is the member's vote weight, and the evidence how probable the judge's model finds
    the answer as its own reply. So a small judge does not by itself lift a weak member over a
    strong one. A guard compares without a prior; a control weighs as much as the heaviest member.
    """
    if reply is None:
        return UnreadableVerdict("no_answer")
    if reply.error:
        return UnreadableVerdict(reply.error.code)
    lineup = call.lineup
    if len(reply.choice_logprobs) != len(lineup.answers):
        return UnreadableVerdict("no_probabilities")
    weights = {a.member: a.weight for a in lineup.answers if a.member != CONTROL}
    heaviest = max(weights.values(), default=1.0)
    log_odds = {}
    for member, logprob in zip(lineup.members, reply.choice_logprobs, strict=True):
        log_prior = 0.0 if kind == "guard" else math.log(weights.get(member, heaviest) / heaviest)
        log_odds[member] = SLOPE * logprob + log_prior
    best = max(log_odds, key=lambda member: log_odds[member])
    share = 1 / sum(math.exp(odds - log_odds[best]) for odds in log_odds.values())
    return Choice(best, f"preferred with {share:.0%}", "strict", reply.choice_logprobs)
