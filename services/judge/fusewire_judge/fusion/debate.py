"""Debate: members that disagree see each other's answers, then the whole course of it is counted."""

from collections.abc import Sequence
from dataclasses import replace

from fusewire.contracts import Call
from fusewire_judge.answers import agreement, canonical, votes
from fusewire_judge.fusion.best_of import judged, vote
from fusewire_judge.fusion.case import Case, Replies, Said, Steps
from fusewire_judge.fusion.wording import lineup, rebut

ALIKE = 0.8
"""Open answers with a mean similarity above this do not disagree."""


def debate(case: Case, said: Sequence[Said]) -> Steps:
    """Let members that disagree answer again, at most `plan.debate_rounds` times.

    It ends when they agree or when nobody changes. Closed answers are then voted over the
    whole trajectory, so that a right answer talked out of a member still counts (Free-MAD);
    open ones are judged.

    Args:
        case: the fusion.
        said: at least two answers.
    """
    current: list[Said] = list(said)
    trail: list[Said] = []
    turns = 0
    while turns < case.plan.debate_rounds and disagree(case, current):
        turns += 1
        replies = yield tuple(_turn(case, one, current, turns) for one in current)
        spoken = [_after(one, replies, turns) for one in current]
        changed = any(_differs(case, a, b) for a, b in zip(current, spoken, strict=True))
        trail, current = [*trail, *current], spoken
        if not changed:
            break
    course = f"after {turns} debate round{'s' if turns != 1 else ''}" if turns else "no disagreement, no debate"
    voted = vote(case, current, trail)
    draft = voted if voted is not None else (yield from judged(case, current))
    return replace(draft, reason=f"{draft.reason} ({course})")


def disagree(case: Case, said: Sequence[Said]) -> bool:
    """Whether closed answers differ, or open ones are unlike."""
    groups = votes(said, case.prompt.sampling.response_schema)
    return len(groups) > 1 if groups is not None else agreement(said) < ALIKE


def _turn(case: Case, own: Said, said: Sequence[Said], turn: int) -> Call:
    members = {m.name: m for m in case.plan.members}
    others = lineup([one for one in said if one is not own], case.plan.seed, f"debate-{turn}-{own.member}")
    return Call(
        name=own.member,
        kind="debate",
        model=members[own.member].model,
        member=own.member,
        messages=rebut(case.prompt, own, others),
        sampling=case.prompt.sampling.model_copy(update={"seed": None}),
    )


def _after(own: Said, replies: Replies, turn: int) -> Said:
    """What a member holds now: its reply, or what it held before when none came."""
    reply = replies.get(own.member)
    if reply is None or not reply.ok or not (reply.content or "").strip():
        return own
    return replace(own, content=reply.content or "", round=turn)


def _differs(case: Case, before: Said, after: Said) -> bool:
    schema = case.prompt.sampling.response_schema
    old, new = canonical(before.content, schema), canonical(after.content, schema)
    if old is None or new is None:
        return before.content.strip() != after.content.strip()
    return old != new
