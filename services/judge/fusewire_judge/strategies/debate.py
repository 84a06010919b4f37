"""Debate: members that disagree see each other's answers, then the whole course of it is counted."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fusewire.contracts import Call
from fusewire_judge.judging.parse import Read, read
from fusewire_judge.judging.prompts import lineup, rebut, rebuttal_schema
from fusewire_judge.model import Case, MemberAnswer, Panel, Replies, Steps
from fusewire_judge.panel.convene import ALIKE
from fusewire_judge.scoring.answers import agreement, canonical, flaw, votes
from fusewire_judge.strategies.best_of import judged, vote

ERROR_TOKENS = 160
"""Room for the error that a member names, on top of its answer."""
LEAST_ERROR_CHARS = 8


def debate(case: Case, panel: Panel) -> Steps:
    """Let members that disagree answer again, at most `plan.debate_rounds` times.

    A member that changes its answer must name the error it found in the old one, or the old
    one stands. It ends when they agree or when nobody changes. Closed answers are then voted
    over the whole trajectory, so that a right answer talked out of a member still counts
    (Free-MAD, 2025); open ones are judged.
    """
    current: list[MemberAnswer] = list(panel.answers)
    trail: list[MemberAnswer] = []
    turns = 0
    barred = _barred(case, current)
    while not barred and turns < case.plan.debate_rounds and _disagree(case, panel, current):
        turns += 1
        replies = yield partial(_calls, case, current, turns)
        spoken = [_after(case, one, replies, turns) for one in current]
        changed = spoken != current
        trail, current = [*trail, *current], spoken
        if not changed:
            break
    course = (
        f"after {turns} debate round{'s' if turns != 1 else ''}"
        if turns
        else barred or "no disagreement, no debate"
    )
    voted = vote(case, panel, current, trail)
    draft = voted if voted is not None else (yield from judged(case, current))
    return replace(draft, reason=f"{draft.reason} ({course})")


def _calls(case: Case, answers: Sequence[MemberAnswer], turn: int) -> tuple[Call, ...]:
    return tuple(
        _turn(case, one, answers, turn) for one in answers if one.member in _speakers(case)
    )


def _speakers(case: Case) -> dict[str, str]:
    """Members that can be asked again, and their families."""
    return {m.name: m.family for m in case.plan.members if not m.is_replay_only}


def _barred(case: Case, answers: Sequence[MemberAnswer]) -> str | None:
    """Why there is no debate, if there is none."""
    families = {
        family
        for name, family in _speakers(case).items()
        if any(one.member == name for one in answers)
    }
    wanted = case.plan.policy.debate_families
    if not families:
        return "nobody can be asked again, no debate"
    return f"fewer than {wanted} families, no debate" if len(families) < wanted else None


def _disagree(case: Case, panel: Panel, answers: Sequence[MemberAnswer]) -> bool:
    """Whether closed answers differ, or open ones are unlike."""
    if panel.kind == "open":
        return agreement(answers) < ALIKE
    return len(votes(answers, case.prompt.sampling.response_schema)) > 1


def _turn(case: Case, own: MemberAnswer, answers: Sequence[MemberAnswer], turn: int) -> Call:
    sampling = case.prompt.sampling
    members = {m.name: m for m in case.plan.members}
    others = lineup(
        [one for one in answers if one is not own], case.plan.seed, f"debate-{turn}-{own.member}"
    )
    return Call(
        name=own.member,
        kind="debate",
        model=members[own.member].model,
        member=own.member,
        messages=rebut(case.prompt, own, others),
        sampling=sampling.model_copy(
            update={
                "seed": None,
                "response_schema": rebuttal_schema(sampling.response_schema),
                "max_tokens": sampling.max_tokens and sampling.max_tokens + ERROR_TOKENS,
            }
        ),
    )


def _after(case: Case, own: MemberAnswer, replies: Replies, turn: int) -> MemberAnswer:
    """What a member holds now: the answer it gives with an error named, or what it held before."""
    reply = replies.get(own.member)
    schema = case.prompt.sampling.response_schema
    rebuttal = (
        read(reply.content, rebuttal_schema(schema)) if reply is not None and reply.ok else None
    )
    if not isinstance(rebuttal, Read) or len(rebuttal.value["error"].strip()) < LEAST_ERROR_CHARS:
        return own
    answer = rebuttal.value["answer"]
    text = (
        answer
        if isinstance(answer, str) and schema is None
        else json.dumps(answer, ensure_ascii=False)
    )
    if flaw(text) or _same(case, own.content, text):
        return own
    return replace(
        own, content=text, round=turn + len(case.panel_rounds), call=own.member, is_cut=False
    )


def _same(case: Case, before: str, after: str) -> bool:
    schema = case.prompt.sampling.response_schema
    old, new = canonical(before, schema), canonical(after, schema)
    return before.strip() == after.strip() if old is None or new is None else old == new
