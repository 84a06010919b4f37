"""Best-of: closed answers are voted, open ones judged."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Literal

from fusewire.contracts import Call, Message, PlannedJudge, Rung, Sampling
from fusewire_judge.answers import agreement, is_tied, medoid, share, votes
from fusewire_judge.fusion.case import Case, Draft, Replies, Said, Steps
from fusewire_judge.fusion.wording import lineup, verdict, verdict_schema
from fusewire_judge.verdict import Read, Unreadable, read

JUDGE_TOKENS = 256


def best_of(case: Case, said: Sequence[Said]) -> Steps:
    """Choose one of the answers.

    Args:
        case: the fusion.
        said: at least two answers.
    """
    voted = vote(case, said)
    if voted is not None:
        return voted
    return (yield from judged(case, said))


def vote(case: Case, said: Sequence[Said], trail: Sequence[Said] = ()) -> Draft | None:
    """The heaviest closed answer; None if they are open, or tied while there is a judge to ask.

    Args:
        case: the fusion.
        said: the answers on the table.
        trail: earlier answers that are counted too.
    """
    groups = votes([*said, *trail], case.prompt.sampling.response_schema)
    if groups is None or (is_tied(groups) and case.plan.judge is not None):
        return None
    heaviest = next(iter(groups.values()))
    current = {one.member: one for one in said}
    # After a debate the heaviest answer may be one that nobody holds any more.
    winner = next((one for one in heaviest if current.get(one.member) == one), heaviest[0])
    behind, counted = len(heaviest), sum(len(g) for g in groups.values())
    rule = "tie, the first of the pool" if is_tied(groups) else f"vote, {behind} of {counted} say the same"
    return Draft(
        status="voted",
        content=winner.content,
        winner=winner.member,
        said=tuple(winner if one.member == winner.member else one for one in said),
        reason=rule,
        agreement=share(groups),
    )


def judged(case: Case, said: Sequence[Said]) -> Steps:
    """The answer that the judge names; without a usable verdict, the one most like the others."""
    judge = case.plan.judge
    if judge is None:
        return by_likeness(said, "no judge, the answer most like the others")
    shown = lineup(said, case.plan.seed, "verdict")
    schema = verdict_schema(shown.labels)
    found = yield from ask_json(judge, "verdict", verdict(case.prompt, shown), schema)
    if isinstance(found, Unreadable):
        fallback = by_likeness(said, "no usable verdict, the answer most like the others")
        return replace(fallback, shown=shown.members, rung="fallback", degraded=(f"judge_failed:{found.reason}",))
    value, rung = found
    winner = shown.by_label(value["winner"])
    return Draft(
        status="fused",
        content=winner.content,
        winner=winner.member,
        said=tuple(said),
        shown=shown.members,
        rung=rung,
        reason=value["reason"],
        agreement=agreement(said),
    )


def by_likeness(said: Sequence[Said], reason: str) -> Draft:
    """The medoid, as a draft."""
    middle = medoid(said)
    return Draft(
        status="voted",
        content=middle.content,
        winner=middle.member,
        said=tuple(said),
        reason=reason,
        agreement=agreement(said),
    )


def ask_json(
    judge: PlannedJudge,
    name: Literal["verdict", "analysis"],
    messages: tuple[Message, ...],
    schema: dict[str, Any],
    max_tokens: int = JUDGE_TOKENS,
) -> Generator[tuple[Call, ...], Replies, tuple[dict[str, Any], Rung] | Unreadable]:
    """Ask the judge for JSON, once more if it cannot be read.

    Yields:
        The calls to make.

    Returns:
        (value, rung), or Unreadable when the ladder has no rung left.
    """
    sampling = Sampling(temperature=0, max_tokens=max_tokens, response_schema=schema)
    unreadable = Unreadable("no_answer")
    for attempt in (name, f"{name}-again"):
        replies = yield (Call(name=attempt, kind=name, model=judge.model, messages=messages, sampling=sampling),)
        reply = replies.get(attempt)
        if reply is None:
            return unreadable
        if reply.error is not None:
            return Unreadable(reply.error.code)
        result = read(reply.content, schema)
        if isinstance(result, Read):
            rung: Rung = result.rung if attempt == name else "reasked"
            return result.value, rung
        unreadable = result
    return unreadable
