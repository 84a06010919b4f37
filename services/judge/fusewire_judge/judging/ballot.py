"""Asking judges, and counting what they say.

Those that write see two opposite orders, each call with labels of its own, and are read on the ladder. Those that
decide by margin read each answer by itself.
"""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from fusewire.contracts import (
    CONTROL,
    Call,
    Candidate,
    Message,
    ParseStage,
    PlannedJudge,
    Sampling,
    Verdict,
    VerdictKind,
)
from fusewire_judge.judging.parse import Read, UnreadableVerdict, read
from fusewire_judge.judging.prompts import (
    Lineup,
    clean,
    control,
    conversation,
    lineup,
    verdict,
    verdict_schema,
)
from fusewire_judge.model import Case, MemberAnswer, Replies, Wanted, wanted

_Left = TypeVar("_Left")
_Right = TypeVar("_Right")

JUDGE_TOKENS = 256
SLOPE = 2.9
"""The odds of a right answer against a wrong one, as a multiple of the difference of their mean log probabilities per
token: a logistic regression on the first half of `make bench-judge`'s pairs, with a 1.5B as the judge. A smaller one
deserves less, and has less to say: its differences are smaller too."""
PARSE_STAGES: tuple[ParseStage, ...] = ("strict", "repaired", "reasked", "fallback")


@dataclass(frozen=True)
class Tally:
    """What the judges said together."""

    named: Mapping[str, int] = field(default_factory=dict)
    """By member that was judged: the verdicts that named it."""
    seen: Mapping[str, int] = field(default_factory=dict)
    """By member that was judged: the verdicts that could have. Empty if no verdict counts."""
    verdicts: tuple[Verdict, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By member: the first judge's sentence for it."""
    shown: tuple[str, ...] = ()
    """Members in the first order."""
    rung: ParseStage | None = None
    """The lowest that a counted verdict was read on."""
    faults: tuple[str, ...] = ()
    """Why verdicts do not count."""

    def leaders(self) -> list[str]:
        """Who leads, by the share of the verdicts that could have named it; several on a tie."""
        scores = {member: self.named[member] / seen for member, seen in self.seen.items()}
        best = max(scores.values(), default=0.0)
        return [member for member, score in scores.items() if score > best - 1e-9 and best > 0]

    @property
    def follows_place(self) -> bool:
        """Whether each verdict that counts, and that saw an order, named what it was shown first."""
        counted = [one for one in self.verdicts if not one.void and not one.logprobs]
        return bool(counted) and all(one.winner == one.shown[0] for one in counted)

    def plus(self, other: "Tally") -> "Tally":
        """Both together, what this one says first."""
        counted = [rung for rung in (self.rung, other.rung) if rung]
        members = dict.fromkeys((*self.seen, *other.seen))
        return Tally(
            named={m: self.named.get(m, 0) + other.named.get(m, 0) for m in members},
            seen={m: self.seen.get(m, 0) + other.seen.get(m, 0) for m in members},
            verdicts=(*self.verdicts, *other.verdicts),
            reasons={**other.reasons, **self.reasons},
            shown=self.shown,
            rung=max(counted, key=PARSE_STAGES.index, default=None),
            faults=tuple(dict.fromkeys((*self.faults, *other.faults))),
        )


@dataclass(frozen=True)
class Choice:
    """What one judge call chose."""

    winner: str
    reason: str
    rung: ParseStage
    logprobs: tuple[float, ...] = ()
    """By answer shown: how probable it was to a judge by margin, per token."""


@dataclass(frozen=True)
class JudgeCall:
    """One judge call."""

    name: str
    juror: PlannedJudge
    shown: Lineup
    control: str | None

    @property
    def is_by_margin(self) -> bool:
        """Whether probabilities decide, and not words."""
        return self.juror.by_margin

    @property
    def schema(self) -> dict[str, Any]:
        """What the verdict must satisfy."""
        return verdict_schema(self.shown.labels)


def poll(
    case: Case,
    answers: Sequence[MemberAnswer],
    turn: str,
    kind: VerdictKind,
    jurors: Sequence[PlannedJudge],
    *,
    firsts: Sequence[str] = (),
) -> Generator[Wanted, Replies, Tally]:
    """Ask every judge which answer is best: in two opposite orders at once, or by margin in one call without any.

    A judge does not see answers of its own model among those of others, and has no voice
    where that leaves less than two. A guard is shown whole to whoever is asked.

    Args:
        case: the fusion.
        said: at least two answers.
        turn: what the calls are named for.
        kind: what is asked, for the record.
        jurors: who is asked.
        firsts: members to be shown first, each in one call, in place of the two orders.

    Yields:
        The calls to make; those that could not be read, once more.
    """
    stacks = [
        _papers(
            case,
            answers if kind == "guard" else _foreign(case, answers, juror),
            f"{turn}-{number}",
            juror,
            firsts,
        )
        for number, juror in enumerate(jurors, 1)
    ]
    papers = [paper for stack in stacks for paper in stack]
    found: dict[str, Choice | UnreadableVerdict] = {}
    pending = papers
    for suffix in ("", "-again"):
        if not pending:
            break
        replies = yield partial(_calls, case, pending, suffix)
        again = []
        for paper in pending:
            reply = replies.get(paper.name + suffix)
            chosen = _preferred(reply, paper, kind) if paper.is_by_margin else _named(reply, paper)
            if suffix and isinstance(chosen, Choice):
                chosen = replace(chosen, rung="reasked")
            found[paper.name] = chosen
            if (
                isinstance(chosen, UnreadableVerdict)
                and not paper.is_by_margin
                and reply is not None
                and reply.ok
            ):
                again.append(paper)
        pending = again
    return _count(stacks, found, kind)


def _foreign(
    case: Case, answers: Sequence[MemberAnswer], juror: PlannedJudge
) -> Sequence[MemberAnswer]:
    """The answers that are not of the judge's own model; all of them where all are, or where it may see its own."""
    if juror.sees_own:
        return answers
    models = {m.name: m.model for m in case.plan.members}
    return [one for one in answers if models.get(one.member) != juror.model] or answers


def _papers(
    case: Case,
    answers: Sequence[MemberAnswer],
    key: str,
    juror: PlannedJudge,
    firsts: Sequence[str],
) -> list[JudgeCall]:
    if len(answers) < 2:
        return []
    seen = _whole(answers) if juror.by_margin else list(answers)
    held = control(case.plan.seed, key, case.plan.policy.control_share)
    if held:
        seen.append(MemberAnswer(CONTROL, 0.0, held[1], 0))
    forward = lineup(seen, case.plan.seed, key)
    if juror.by_margin:
        shown = [forward]
    elif firsts:
        here = [name for name in firsts if name in forward.members]
        shown = [lineup(seen, case.plan.seed, f"{key}-{name}", first=name) for name in here]
    else:
        shown = [forward, lineup(seen, case.plan.seed, key, is_reversed=True)]
    return [
        JudgeCall(f"{key}-{order}", juror, one, held and held[0])
        for order, one in enumerate(shown, 1)
    ]


def _whole(answers: Sequence[MemberAnswer]) -> list[MemberAnswer]:
    """Without answers that were cut off, where two are left: what has no end yet is not less probable for that."""
    whole = [one for one in answers if not one.is_cut]
    return whole if len(whole) > 1 else list(answers)


def _calls(case: Case, papers: Sequence[JudgeCall], suffix: str) -> tuple[Call, ...]:
    return tuple(_call(case, paper, suffix) for paper in papers)


def _call(case: Case, paper: JudgeCall, suffix: str) -> Call:
    if paper.is_by_margin:
        return Call(
            name=paper.name + suffix,
            kind="verdict",
            model=paper.juror.model,
            messages=conversation(case.prompt, case.plan.policy.criteria),
            expected_tokens=1,
            choices=tuple(clean(one.content) for one in paper.shown.answers),
        )
    return Call(
        name=paper.name + suffix,
        kind="verdict",
        model=paper.juror.model,
        messages=verdict(case.prompt, paper.shown, case.plan.policy.criteria),
        sampling=Sampling(response_schema=paper.schema),
        expected_tokens=JUDGE_TOKENS,
    )


def _read(reply: Candidate | None, schema: dict[str, Any]) -> Read | UnreadableVerdict:
    if reply is None:
        return UnreadableVerdict("no_answer")
    return UnreadableVerdict(reply.error.code) if reply.error else read(reply.content, schema)


def _named(reply: Candidate | None, paper: JudgeCall) -> Choice | UnreadableVerdict:
    """Whom a judge that writes names."""
    result = _read(reply, paper.schema)
    if isinstance(result, UnreadableVerdict):
        return result
    return Choice(
        paper.shown.by_label(result.value["winner"]).member, result.value["reason"], result.rung
    )


def _preferred(
    reply: Candidate | None, paper: JudgeCall, kind: VerdictKind
) -> Choice | UnreadableVerdict:
    """Whom a judge by margin prefers.

    What the model finds probable as its own reply is evidence; a member's weight is what is known of it before (Bayes).
    So a small judge does not by itself lift a weak voice over a strong one. A guard compares without; a control weighs
    as much as the heaviest.
    """
    if reply is None:
        return UnreadableVerdict("no_answer")
    if reply.error:
        return UnreadableVerdict(reply.error.code)
    if len(reply.choice_logprobs) != len(paper.shown.answers):
        return UnreadableVerdict("no_probabilities")
    weights = {one.member: one.weight for one in paper.shown.answers if one.member != CONTROL}
    heaviest = max(weights.values(), default=1.0)
    odds = {}
    for member, logprob in zip(paper.shown.members, reply.choice_logprobs, strict=True):
        prior = 0.0 if kind == "guard" else math.log(weights.get(member, heaviest) / heaviest)
        odds[member] = SLOPE * logprob + prior
    best = max(odds, key=lambda member: odds[member])
    share = 1 / sum(math.exp(each - odds[best]) for each in odds.values())
    return Choice(best, f"preferred with {share:.0%}", "strict", reply.choice_logprobs)


def _count(
    stacks: Sequence[Sequence[JudgeCall]],
    found: Mapping[str, Choice | UnreadableVerdict],
    kind: VerdictKind,
) -> Tally:
    named: dict[str, int] = {}
    seen: dict[str, int] = {}
    reasons: dict[str, str] = {}
    verdicts: list[Verdict] = []
    faults: list[str] = []
    for stack in stacks:
        mine = [_verdict(paper, found[paper.name], kind) for paper in stack]
        winners = [one.winner for one in mine if one.winner]
        if CONTROL in winners:
            faults.append("picked_control")
            verdicts += [
                one.model_copy(update={"void": one.void or "picked_control"}) for one in mine
            ]
            continue
        faults += [one.void for one in mine if one.void]
        is_swapped = len(stack) == 2 and stack[0].shown.members == stack[1].shown.members[::-1]
        if is_swapped and len(winners) == 1:
            faults.append("one_order")
        agree = mine[0].winner == mine[1].winner if is_swapped and len(winners) == 2 else None
        verdicts += [one.model_copy(update={"is_consistent": agree}) for one in mine]
        for paper in stack:
            chosen = found[paper.name]
            if isinstance(chosen, UnreadableVerdict):
                continue
            for member in paper.shown.members:
                if member != CONTROL:
                    seen[member] = seen.get(member, 0) + 1
                    named[member] = named.get(member, 0) + (member == chosen.winner)
            reasons.setdefault(chosen.winner, chosen.reason)
    counted = [one.rung for one in verdicts if one.rung and not one.void]
    first = next((stack[0] for stack in stacks if stack), None)
    return Tally(
        named=named,
        seen=seen,
        verdicts=tuple(verdicts),
        reasons=reasons,
        shown=tuple(m for m in first.shown.members if m != CONTROL) if first else (),
        rung=max(counted, key=PARSE_STAGES.index, default=None),
        faults=tuple(dict.fromkeys(faults)),
    )


def _verdict(paper: JudgeCall, chosen: Choice | UnreadableVerdict, kind: VerdictKind) -> Verdict:
    choice = chosen if isinstance(chosen, Choice) else None
    return Verdict(
        call=paper.name,
        kind=kind,
        judge_model=paper.juror.model,
        shown=paper.shown.members,
        chars=tuple(len(one.content) for one in paper.shown.answers),
        control=paper.control,
        winner=choice and choice.winner,
        rung=choice and choice.rung,
        logprobs=choice.logprobs if choice else (),
        void=chosen.reason if isinstance(chosen, UnreadableVerdict) else None,
    )


def ask_json(
    judge: PlannedJudge,
    name: Literal["analysis"],
    messages: tuple[Message, ...],
    schema: dict[str, Any],
    expected_tokens: int,
) -> Generator[Wanted, Replies, tuple[dict[str, Any], ParseStage] | UnreadableVerdict]:
    """Ask one judge for JSON, once more if it cannot be read.

    Yields:
        The calls to make.

    Returns:
        (value, rung), or Unreadable when the ladder has no rung left.
    """
    sampling = Sampling(response_schema=schema)
    unreadable = UnreadableVerdict("no_answer")
    for attempt in (name, f"{name}-again"):
        call = Call(
            name=attempt,
            kind=name,
            model=judge.model,
            messages=messages,
            sampling=sampling,
            expected_tokens=expected_tokens,
        )
        replies = yield wanted(call)
        reply = replies.get(attempt)
        result = _read(reply, schema)
        if isinstance(result, Read):
            return result.value, result.rung if attempt == name else "reasked"
        unreadable = result
        if reply is None or not reply.ok:
            break
    return unreadable


def both(
    left: Generator[Wanted, Replies, _Left], right: Generator[Wanted, Replies, _Right]
) -> Generator[Wanted, Replies, tuple[_Left, _Right]]:
    """Run two courses of calls side by side: what both want next is asked in one round."""
    ended: dict[int, Any] = {}
    waiting: dict[int, Wanted] = {}
    courses = (left, right)
    for place, course in enumerate(courses):
        _advance(course, None, place, waiting, ended)
    while waiting:
        replies = yield partial(_together, [waiting[place] for place in sorted(waiting)])
        for place in sorted(waiting):
            _advance(courses[place], replies, place, waiting, ended)
    return ended[0], ended[1]


def _together(courses: Iterable[Wanted]) -> tuple[Call, ...]:
    return tuple(call for course in courses for call in course())


def _advance(
    course: Generator[Wanted, Replies, Any],
    replies: Replies | None,
    place: int,
    waiting: dict[int, Wanted],
    ended: dict[int, Any],
) -> None:
    try:
        waiting[place] = next(course) if replies is None else course.send(replies)
    except StopIteration as end:
        waiting.pop(place, None)
        ended[place] = end.value
