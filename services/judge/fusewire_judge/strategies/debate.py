"""Debate: members that disagree see each other's answers and may revise their own.

The answers of all rounds are counted.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fusewire.contracts import Call
from fusewire_judge.judging.parse import Read, read
from fusewire_judge.judging.prompts import debate_messages, make_lineup, rebuttal_schema
from fusewire_judge.model import Case, MemberAnswer, Panel, Replies, Steps
from fusewire_judge.scoring.answers import ALIKE, agreement, canonical, flaw, votes
from fusewire_judge.strategies.best_of import ask_judges, odds_of, vote

ERROR_TOKENS = 160
"""Tokens allowed for the error that a member states, on top of its answer."""
LEAST_ERROR_CHARS = 8
"""A shorter statement of an error does not count as one."""


def debate(case: Case, panel: Panel) -> Steps:
    """Let members that disagree answer again, at most `plan.debate_rounds` times.

    A member that changes its answer must state the error in the old one, or the old one stands. The
    debate ends when the members agree or when none changes. Closed answers are then voted over all
    rounds, so that a right answer talked out of a member still counts (Free-MAD, 2025); open ones
    are judged.
    """
    current: list[MemberAnswer] = list(panel.answers)
    trail: list[MemberAnswer] = []
    turns = 0
    obstacle = _obstacle(case, current)
    while not obstacle and turns < case.plan.debate_rounds and _disagree(case, panel, current):
        turns += 1
        replies = yield partial(_make_calls, case, current, turns)
        revisions = [_revise(case, answer, replies, turns) for answer in current]
        is_changed = revisions != current
        trail += current
        current = revisions
        if not is_changed:
            break
    draft = vote(case, panel, current, trail)
    if draft is None:
        draft = yield from ask_judges(case, current, odds_of(case, panel))
    return replace(draft, reason=f"{draft.reason} ({_course(turns, obstacle)})")


def _course(turns: int, obstacle: str | None) -> str:
    """How the debate went, for the outcome's reason."""
    if not turns:
        return obstacle or "no disagreement, no debate"
    return f"after {turns} debate round{'s' if turns != 1 else ''}"


def _make_calls(case: Case, answers: Sequence[MemberAnswer], turn: int) -> tuple[Call, ...]:
    families = _families(case)
    return tuple(_turn(case, a, answers, turn) for a in answers if a.member in families)


def _families(case: Case) -> dict[str, str]:
    """Families of the members that can be called again, by member."""
    return {m.name: m.family for m in case.plan.members if not m.is_replay_only}


def _obstacle(case: Case, answers: Sequence[MemberAnswer]) -> str | None:
    """Why there can be no debate; None if there can."""
    families_by_member = _families(case)
    members = {answer.member for answer in answers}
    families = {family for name, family in families_by_member.items() if name in members}
    least = case.plan.policy.debate_families
    if not families:
        return "nobody can be asked again, no debate"
    if len(families) < least:
        return f"fewer than {least} families, no debate"
    return None


def _disagree(case: Case, panel: Panel, answers: Sequence[MemberAnswer]) -> bool:
    """Whether closed answers differ, or open ones are not alike."""
    if panel.kind == "open":
        return agreement(answers) < ALIKE
    return len(votes(answers, case.prompt.sampling.response_schema)) > 1


def _turn(case: Case, own: MemberAnswer, answers: Sequence[MemberAnswer], turn: int) -> Call:
    sampling = case.prompt.sampling
    members = {m.name: m for m in case.plan.members}
    other_answers = [answer for answer in answers if answer is not own]
    opponents = make_lineup(other_answers, case.plan.seed, f"debate-{turn}-{own.member}")
    return Call(
        name=own.member,
        kind="debate",
        model=members[own.member].model,
        member=own.member,
        messages=debate_messages(case.prompt, own, opponents),
        sampling=sampling.model_copy(
            update={
                "seed": None,
                "response_schema": rebuttal_schema(sampling.response_schema),
                "max_tokens": sampling.max_tokens and sampling.max_tokens + ERROR_TOKENS,
            }
        ),
    )


def _revise(case: Case, own: MemberAnswer, replies: Replies, turn: int) -> MemberAnswer:
    """A member's answer after a turn: the new one if it states an error, else the old one."""
    schema = case.prompt.sampling.response_schema
    reply = replies.get(own.member)
    if reply is None or not reply.ok:
        return own
    rebuttal = read(reply.content, rebuttal_schema(schema))
    if not isinstance(rebuttal, Read) or len(rebuttal.value["error"].strip()) < LEAST_ERROR_CHARS:
        return own
    text = rebuttal.value["answer"]
    if schema is not None or not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    if flaw(text) or _is_same(case, own.content, text):
        return own
    number = turn + len(case.panel_rounds)
    return replace(own, content=text, round=number, call=own.member, is_cut=False)


def _is_same(case: Case, before: str, after: str) -> bool:
    schema = case.prompt.sampling.response_schema
    old, new = canonical(before, schema), canonical(after, schema)
    if old is None or new is None:
        return before.strip() == after.strip()
    return old == new
