"""The panel: whose answers are heard, who is still waited for, who is asked a second time or not at all. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

from fusewire.contracts import AnswerKind, Call, ClosedBy, PlannedMember
from fusewire_judge.model import Ask, Case, MemberAnswer, Panel, ReceivedCandidate, Wait
from fusewire_judge.panel.quorum import closes_at, quorum_at, settled_early
from fusewire_judge.scoring.answers import (
    agreement,
    canonical,
    flaw,
    kind_of,
    posterior,
    unwrapped,
    votes,
)

ALIKE = 0.8
"""Open answers with a mean similarity above this do not disagree."""
GATE_SHARE = 0.5
"""The share of the panel's time after which an edge-first gate is waited for no longer."""
GATE_TAU = 0.93

Voices = Mapping[str, Sequence[ReceivedCandidate]]
"""By member: all that was heard of it in time, in the order of arrival."""


def convene(case: Case, now: datetime) -> Panel | Wait | Ask:
    """The panel if it is over; else whom to ask besides, or until when to wait.

    Whatever comes after a strategy has asked its first round changes nothing: the panel is
    then made of what was heard before, and so is the reason for which it closed.
    """
    voices = _voices(case)
    is_frozen = len(case.rounds) > len(case.panel_rounds)
    asked, second = _asked(case)
    if second:
        gate: Literal["open", "shut"] | Wait | Ask = (
            "shut" if is_frozen else _gate(case, voices, asked, now)
        )
        if gate == "shut" and not is_frozen and now < case.plan.panel_deadline_at:
            gate = _fan_out(case, second)
        if gate == "open":
            return _close(case, asked, voices, "gate")
        # Shut for good: it is too late to ask them.
        return _close(case, case.plan.members, voices, "deadline") if gate == "shut" else gate
    closed = _over(case, asked, voices, now, is_frozen=is_frozen)
    if not isinstance(closed, datetime):
        return _close(case, asked, voices, closed)
    due = _hedges_due(case, asked, voices)
    calls = tuple(_answer_call(case, m, f"{m.name}=h") for at, m in due if at <= now)
    if calls:
        return Ask(calls, len(case.rounds) + 1, closed)
    return Wait(min([closed, *(at for at, _ in due)]))


def broken_off(case: Case) -> Panel:
    """The panel of a fusion that is cancelled: what there is of it."""
    asked, _ = _asked(case)
    return _close(case, asked, _voices(case), None)


def _voices(case: Case) -> dict[str, list[ReceivedCandidate]]:
    widened = len(case.panel_rounds)
    found: dict[str, list[ReceivedCandidate]] = {m.name: [] for m in case.plan.members}
    for (round_, call), heard in case.received.items():
        member = call.partition("=")[0]
        if round_ <= widened and heard.after_rounds <= widened and member in found:
            found[member].append(heard)
    for heard_of_it in found.values():
        heard_of_it.sort(
            key=lambda heard: (heard.received_at, heard.candidate.round, heard.candidate.call)
        )
    return found


def _asked(case: Case) -> tuple[list[PlannedMember], list[PlannedMember]]:
    """Members that were asked, and those of a second wave that has not been."""
    called = {call.name for asked in case.panel_rounds for call in asked.calls}
    second = [m for m in case.plan.members if m.wave and m.name not in called]
    return [m for m in case.plan.members if m not in second], second


def _calls(case: Case, member: PlannedMember) -> int:
    """How many calls it was given."""
    later = sum(call.member == member.name for asked in case.panel_rounds for call in asked.calls)
    return later + (len(member.calls) if member.wave == 0 else 0)


def _is_settled(case: Case, member: PlannedMember, heard: Sequence[ReceivedCandidate]) -> bool:
    return any(one.candidate.ok for one in heard) or len(heard) >= _calls(case, member)


# -- the gate ---------------------------------------------------------------------------------


def _gate(
    case: Case, voices: Voices, first: Sequence[PlannedMember], now: datetime
) -> Literal["open", "shut"] | Wait:
    """Whether the first wave is enough, or until when that is not known."""
    plan, schema = case.plan, case.prompt.sampling.response_schema
    heard = [one for m in first for one in voices[m.name]]
    out = sum(_calls(case, m) for m in first) - len(heard)
    texts = [unwrapped(h.candidate.content or "", schema) for h in heard if h.candidate.ok]
    texts = [text for text in texts if not flaw(text)]
    if any(h.candidate.tool_calls for h in heard):
        return "shut"  # calls are fused from all
    values = [canonical(text, schema) for text in texts]
    if texts and kind_of(texts, schema) != "open":
        counts = sorted((values.count(value) for value in set(values) if value), reverse=True)
        leading, others = counts[0], len(texts) - counts[0]
        wanted = min(plan.policy.early_stop, GATE_TAU)
        if leading >= 2 and posterior(leading, others) >= wanted:
            return "open"
        is_lost = posterior(leading + out, others) < wanted
    else:
        if (
            len(texts) >= 2
            and not out
            and agreement([MemberAnswer("", 1.0, text, 0) for text in texts]) >= ALIKE
        ):
            return "open"
        is_lost = False
    sure = plan.policy.gate_confidence
    is_one = len(texts) == 1 or (len(set(values)) == 1 and values[0] is not None)
    if sure is not None and is_one:
        best = max((h.candidate.confidence or 0.0 for h in heard if h.candidate.ok), default=0.0)
        if best >= sure:
            return "open"
    until = plan.planned_at + GATE_SHARE * (plan.panel_deadline_at - plan.planned_at)
    return Wait(until) if out and not is_lost and now < until else "shut"


def _fan_out(case: Case, second: Sequence[PlannedMember]) -> Ask:
    calls = tuple(_answer_call(case, m, m.name) for m in second)
    return Ask(calls, len(case.rounds) + 1, case.plan.panel_deadline_at)


def _answer_call(case: Case, member: PlannedMember, name: str) -> Call:
    prompt = case.prompt
    return Call(
        name=name,
        kind="answer",
        model=member.model,
        member=member.name,
        messages=prompt.messages,
        sampling=prompt.sampling.model_copy(update={"seed": None}),
        tools=prompt.tools,
        tool_choice=prompt.tool_choice,
        parallel_tool_calls=prompt.parallel_tool_calls,
    )


# -- enough -----------------------------------------------------------------------------------


def _over(
    case: Case, asked: Sequence[PlannedMember], voices: Voices, now: datetime, *, is_frozen: bool
) -> ClosedBy | datetime:
    """Why the panel is over, or when it will be at the latest."""
    plan = case.plan
    out = [m for m in asked if not _is_settled(case, m, voices[m.name])]
    if not out:
        return "complete"
    is_required_out = any(m.is_required for m in out)
    said, flaws, kind = _said(case, asked, voices)
    is_sound = not any(one.member in flaws for one in said)
    if not is_required_out and is_sound and kind not in ("open", "tool_call"):
        schema = case.prompt.sampling.response_schema
        early = settled_early(plan, said, [m.weight_for(kind) for m in out], schema)
        if early:
            return early
    answered = {
        m.name: _first(voices[m.name]).received_at
        for m in asked
        if m.name not in flaws and any(h.candidate.ok for h in voices[m.name])
    }
    quorum = quorum_at(plan, {m.name: m.weight_for(kind) for m in asked}, answered)
    until = closes_at(plan, quorum, is_required_out=is_required_out)
    if now < until and not is_frozen:
        return until
    return "deadline" if quorum is None or is_required_out else "quorum"


def _hedges_due(
    case: Case, asked: Sequence[PlannedMember], voices: Voices
) -> list[tuple[datetime, PlannedMember]]:
    """Stragglers that may be asked a second time, and when. A second wave is not hedged."""
    hedged = {call.member for round_ in case.panel_rounds for call in round_.calls}
    return [
        (case.plan.planned_at + timedelta(seconds=m.hedge_after_s), m)
        for m in asked
        if m.hedge_after_s is not None and m.name not in hedged and not voices[m.name]
    ]


def _close(
    case: Case, asked: Sequence[PlannedMember], voices: Voices, closed_by: ClosedBy | None
) -> Panel:
    said, flaws, kind = _said(case, asked, voices)
    return Panel(
        answers=said,
        received={m.name: _first(voices[m.name]) for m in asked if voices[m.name]},
        skipped=frozenset(m.name for m in case.plan.members) - {m.name for m in asked},
        flaws=flaws,
        kind=kind,
        closed_by=closed_by,
    )


def _first(heard: Sequence[ReceivedCandidate]) -> ReceivedCandidate:
    """The candidate that stands for a member: its first answer, else its last failure."""
    return next((one for one in heard if one.candidate.ok), heard[-1])


def _said(
    case: Case, asked: Sequence[PlannedMember], voices: Voices
) -> tuple[tuple[MemberAnswer, ...], dict[str, str], AnswerKind]:
    """The usable answers, weighed; what is wrong with the others; and their kind."""
    schema = case.prompt.sampling.response_schema
    found: list[MemberAnswer] = []
    flaws: dict[str, str] = {}
    for member in asked:
        own = [_as_said(case, member, one) for one in voices[member.name] if one.candidate.ok]
        sound = [one for one in own if _fault(case, one) is None]
        if sound:
            # Of several samples the one that most of them agree with.
            grouped = votes(sound, schema) if len(sound) > 1 else {}
            found.append(next(iter(grouped.values()))[0] if grouped else sound[0])
        elif own:
            flaws[member.name] = _fault(case, own[0]) or "empty"
            found.append(own[0])
    # Where nobody did better, a refusal is what the pool says.
    if any(one.member not in flaws for one in found):
        found = [one for one in found if one.member not in flaws]
    else:
        found = [one for one in found if flaws[one.member] != "empty"]
    if any(one.tool_calls for one in found):
        kind: AnswerKind = "tool_call"
    else:
        kind = kind_of([one.content for one in found], schema) if found else "open"
    weights = {m.name: m.weight_for(kind) for m in asked}
    return tuple(replace(one, weight=weights[one.member]) for one in found), flaws, kind


def _fault(case: Case, one: MemberAnswer) -> str | None:
    """Why what a member said is no answer to what was asked; None if it is one."""
    prompt = case.prompt
    if one.tool_calls:
        return None
    if prompt.tool_choice not in ("auto", "none"):
        return "no_call"
    if found := flaw(one.content):
        return found
    schema = prompt.sampling.response_schema
    return "off_schema" if schema is not None and canonical(one.content, schema) is None else None


def _as_said(case: Case, member: PlannedMember, heard: ReceivedCandidate) -> MemberAnswer:
    """What a member said, within what it was allowed to: providers do not all keep to that."""
    candidate, prompt = heard.candidate, case.prompt
    calls = candidate.tool_calls if prompt.tool_choice != "none" else ()
    if prompt.tool_choice not in ("auto", "none", "required"):
        calls = tuple(call for call in calls if call.name == prompt.tool_choice)
    return MemberAnswer(
        member=member.name,
        weight=1.0,
        content=unwrapped(candidate.content or "", prompt.sampling.response_schema),
        round=candidate.round,
        call=candidate.call,
        cost_usd=candidate.cost_usd,
        # The first call is the one that needs no other's result.
        tool_calls=calls if prompt.parallel_tool_calls else calls[:1],
        is_cut=candidate.finish_reason == "length",
    )
