"""The usable answers of a panel: one for each member, without refusals and broken forms. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusewire.contracts import AnswerKind, PlannedMember
from fusewire_judge.model import Case, Flaw, MemberAnswer, ReceivedCandidate
from fusewire_judge.panel.progress import ArrivalsByMember
from fusewire_judge.scoring.answers import canonical, flaw, kind_of, unwrap_json, votes


def usable_answers(
    case: Case, members: Sequence[PlannedMember], arrivals: ArrivalsByMember
) -> tuple[tuple[MemberAnswer, ...], dict[str, Flaw], AnswerKind]:
    """Choose the answers that count, and weigh them by their kind.

    Returns:
        The answers in the order of `members`; by member, the flaw of an answer that is none;
        and the kind of the answers.
    """
    schema = case.prompt.sampling.response_schema
    answers: list[MemberAnswer] = []
    flaws: dict[str, Flaw] = {}
    for member in members:
        samples = _samples(case, member, arrivals)
        if not samples:
            continue
        sound_samples = [sample for sample in samples if _find_flaw(case, sample) is None]
        if sound_samples:
            answers.append(_majority_sample(sound_samples, schema))
        else:
            flaws[member.name] = _find_flaw(case, samples[0]) or "empty"
            answers.append(samples[0])
    answers = _without_flawed(answers, flaws)
    kind = _kind(answers, schema)
    return _weigh(answers, members, kind), flaws, kind


def _samples(case: Case, member: PlannedMember, arrivals: ArrivalsByMember) -> list[MemberAnswer]:
    return [
        _as_answer(case, member, arrival)
        for arrival in arrivals[member.name]
        if arrival.candidate.ok
    ]


def _weigh(
    answers: Sequence[MemberAnswer], members: Sequence[PlannedMember], kind: AnswerKind
) -> tuple[MemberAnswer, ...]:
    """Give each answer its member's vote weight for this kind of answer."""
    weights = {member.name: member.weight_for(kind) for member in members}
    return tuple(replace(answer, weight=weights[answer.member]) for answer in answers)


def _majority_sample(
    samples: Sequence[MemberAnswer], schema: Mapping[str, Any] | None
) -> MemberAnswer:
    """Of several samples of one member, the first of those that most of them agree with."""
    if len(samples) == 1:
        return samples[0]
    groups = list(votes(samples, schema).values())
    return groups[0][0] if groups else samples[0]


def _without_flawed(
    answers: Sequence[MemberAnswer], flaws: Mapping[str, Flaw]
) -> list[MemberAnswer]:
    """Drop flawed answers; if all are flawed, drop only the empty ones.

    Where no member did better, a refusal is what the pool answers.
    """
    sound_answers = [answer for answer in answers if answer.member not in flaws]
    if sound_answers:
        return sound_answers
    return [answer for answer in answers if flaws[answer.member] != "empty"]


def _kind(answers: Sequence[MemberAnswer], schema: Mapping[str, Any] | None) -> AnswerKind:
    if any(answer.tool_calls for answer in answers):
        return "tool_call"
    return kind_of([answer.content for answer in answers], schema)


def _find_flaw(case: Case, answer: MemberAnswer) -> Flaw | None:
    """Why a text is no answer to the prompt; None if it is one."""
    prompt = case.prompt
    if answer.tool_calls:
        return None
    # Checked here, as providers differ in what they enforce (docs/decisions/0039).
    if prompt.tool_choice not in ("auto", "none"):
        return "no_call"
    text_flaw = flaw(answer.content)
    if text_flaw:
        return text_flaw
    schema = prompt.sampling.response_schema
    if schema is not None and canonical(answer.content, schema) is None:
        return "off_schema"
    return None


def _as_answer(case: Case, member: PlannedMember, arrival: ReceivedCandidate) -> MemberAnswer:
    """Turn a candidate into an answer, without tool calls that the prompt does not allow.

    Providers do not all enforce `tool_choice` and `parallel_tool_calls` (docs/decisions/0039).
    """
    candidate, prompt = arrival.candidate, case.prompt
    calls = candidate.tool_calls if prompt.tool_choice != "none" else ()
    if prompt.tool_choice not in ("auto", "none", "required"):
        calls = tuple(call for call in calls if call.name == prompt.tool_choice)
    if not prompt.parallel_tool_calls:
        # The first call is the one that needs no other's result.
        calls = calls[:1]
    return MemberAnswer(
        member=member.name,
        weight=1.0,
        content=unwrap_json(candidate.content or "", prompt.sampling.response_schema),
        round=candidate.round,
        call=candidate.call,
        cost_usd=candidate.cost_usd,
        tool_calls=calls,
        is_cut=candidate.finish_reason == "length",
    )
