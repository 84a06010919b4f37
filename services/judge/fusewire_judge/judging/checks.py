"""Ask judges of each answer on its own whether it is right. Pure.

A judge that writes says whether the answer passes, and why; it is asked `policy.checks` times. A
judge by margin is asked once: its probability of "yes" counts.
"""

import math
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from fusewire.contracts import CONTROL, Call, Candidate, ParseStage, PlannedJudge, Sampling, Verdict
from fusewire_judge.judging.ask import ask_readable, read_reply
from fusewire_judge.judging.parse import UnreadableVerdict
from fusewire_judge.judging.prompts import (
    Lineup,
    check_messages,
    check_schema,
    draw_control,
    make_lineup,
)
from fusewire_judge.judging.tally import worst_stage
from fusewire_judge.learning.check_model import ORDINARY, CheckEvidence
from fusewire_judge.model import Case, MakeCalls, MemberAnswer, Replies

CHECK_TOKENS = 160
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class CheckCall:
    """One call of one judge on one answer.

    Attributes:
        name: of the call.
        juror: the judge.
        lineup: holds the answer alone.
        number: which answer it is; -1 for a control.
        control: its kind, if it is one.
    """

    name: str
    juror: PlannedJudge
    lineup: Lineup
    number: int
    control: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """What a judge said of an answer; `chance` that it passes is 0 or 1 where it was written."""

    chance: float
    reason: str
    parse_stage: ParseStage
    logprobs: tuple[float, ...] = ()

    @property
    def is_pass(self) -> bool:
        """Whether the answer passes."""
        return self.chance > 0.5


@dataclass(frozen=True)
class CheckTally:
    """What all judges said of all answers, by an answer's number."""

    evidence: Mapping[int, float] = field(default_factory=dict)
    """The log odds of being right that they add."""
    results: Mapping[int, Sequence[CheckResult]] = field(default_factory=dict)
    """Those that count; empty if none does."""
    verdicts: tuple[Verdict, ...] = ()
    faults: tuple[str, ...] = ()
    """Why some do not count."""

    @property
    def parse_stage(self) -> ParseStage | None:
        """The worst stage at which one that counts was parsed."""
        results = chain.from_iterable(self.results.values())
        return worst_stage(result.parse_stage for result in results)


def edges_of(juror: PlannedJudge) -> CheckEvidence:
    """What a judge's checks change: as learned, or as those of an ordinary judge."""
    if juror.pass_edge is None or juror.fail_edge is None:
        return ORDINARY
    return CheckEvidence(juror.pass_edge, juror.fail_edge)


def most_swing(jurors: Sequence[PlannedJudge]) -> float:
    """By how much checks can at most bring one answer nearer to another, in log odds."""
    return sum(edges.passing - edges.failing for edges in map(edges_of, jurors))


def check(
    case: Case, answers: Sequence[Sequence[MemberAnswer]], jurors: Sequence[PlannedJudge]
) -> Generator[MakeCalls, Replies, CheckTally]:
    """Let every judge check every answer.

    A judge does not check an answer that members of its own model alone gave, unless all are, or it
    may judge its own.

    Args:
        case: the fusion.
        answers: distinct ones, each with the members that gave it.
        jurors: the judges to ask.

    Yields:
        The calls to make; those whose output cannot be parsed, once more.
    """
    calls_by_judge = [
        _judge_calls(case, answers, f"check-{place}", juror)
        for place, juror in enumerate(jurors, 1)
    ]
    outputs = yield from ask_readable(
        list(chain.from_iterable(calls_by_judge)),
        make_call=lambda call, suffix: _make_call(case, call, suffix),
        read=_read,
        may_repeat=lambda call: not call.juror.by_margin,
    )
    return _weigh(calls_by_judge, outputs)


def _weigh(
    calls_by_judge: Sequence[Sequence[CheckCall]],
    outputs: Mapping[str, CheckResult | UnreadableVerdict],
) -> CheckTally:
    verdicts: list[Verdict] = []
    results: defaultdict[int, list[CheckResult]] = defaultdict(list)
    evidence: defaultdict[int, float] = defaultdict(float)
    for calls in calls_by_judge:
        is_broken = _passes_control(calls, outputs)
        verdicts += [_verdict(call, outputs[call.name], is_broken=is_broken) for call in calls]
        own_results = {} if is_broken else _results(calls, outputs)
        for number, own in own_results.items():
            results[number] += own
            evidence[number] += _evidence(own, edges_of(calls[0].juror))
    faults = tuple(dict.fromkeys(verdict.void for verdict in verdicts if verdict.void))
    return CheckTally(evidence, results, tuple(verdicts), faults)


# -- the calls --------------------------------------------------------------------------------


def _judge_calls(
    case: Case, answers: Sequence[Sequence[MemberAnswer]], key: str, juror: PlannedJudge
) -> list[CheckCall]:
    texts = _texts(case, answers, juror)
    samples = 1 if juror.by_margin else case.plan.policy.checks
    calls = []
    for number, answer in texts.items():
        for sample in range(1, samples + 1):
            name = f"{key}-{number + 1}-{sample}"
            calls.append(CheckCall(name, juror, _lineup(case, answer, name), number))
    control = draw_control(case.plan.seed, key, case.plan.policy.control_share)
    if control and calls:
        name = f"{key}-control"
        lineup = _lineup(case, MemberAnswer(CONTROL, 0.0, control[1], 0), name)
        calls.append(CheckCall(name, juror, lineup, -1, control[0]))
    return calls


def _lineup(case: Case, answer: MemberAnswer, name: str) -> Lineup:
    return make_lineup([answer], case.plan.seed, name)


def _texts(
    case: Case, answers: Sequence[Sequence[MemberAnswer]], juror: PlannedJudge
) -> dict[int, MemberAnswer]:
    """By number, the text that this judge is shown: the first of a member of another model."""
    models = {member.name: member.model for member in case.plan.members}
    texts = {}
    for number, same in enumerate(answers):
        of_others = [a for a in same if juror.sees_own or models.get(a.member) != juror.model]
        if of_others:
            texts[number] = of_others[0]
    return texts or {number: same[0] for number, same in enumerate(answers)}


def _make_call(case: Case, call: CheckCall, suffix: str) -> Call:
    messages = check_messages(
        case.prompt, call.lineup, case.plan.policy.criteria, is_written=not call.juror.by_margin
    )
    name, model = call.name + suffix, call.juror.model
    if call.juror.by_margin:
        return Call(
            name=name,
            kind="check",
            model=model,
            messages=messages,
            expected_tokens=1,
            choices=YES_NO,
        )
    return Call(
        name=name,
        kind="check",
        model=model,
        messages=messages,
        sampling=Sampling(response_schema=check_schema()),
        # No limit of a hosted model, which needs room for thought (docs/decisions/0035).
        expected_tokens=CHECK_TOKENS,
    )


# -- the replies ------------------------------------------------------------------------------


def _read(reply: Candidate | None, call: CheckCall, suffix: str) -> CheckResult | UnreadableVerdict:
    if call.juror.by_margin:
        return _read_margin(reply)
    output = read_reply(reply, check_schema())
    if isinstance(output, UnreadableVerdict):
        return output
    stage: ParseStage = "reasked" if suffix else output.parse_stage
    return CheckResult(float(output.value["passes"]), output.value["reason"], stage)


def _read_margin(reply: Candidate | None) -> CheckResult | UnreadableVerdict:
    if reply is None:
        return UnreadableVerdict("no_answer")
    if reply.error:
        return UnreadableVerdict(reply.error.code)
    if len(reply.choice_logprobs) != len(YES_NO):
        return UnreadableVerdict("no_probabilities")
    yes, no = reply.choice_logprobs
    chance = 1 / (1 + math.exp(min(max(no - yes, -500.0), 500.0)))
    return CheckResult(chance, f"right with {chance:.0%}", "strict", (yes, no))


def _passes_control(
    calls: Iterable[CheckCall], outputs: Mapping[str, CheckResult | UnreadableVerdict]
) -> bool:
    """Whether a judge passes an answer that says nothing: then none of its checks count."""
    for call in calls:
        output = outputs[call.name]
        if call.control and isinstance(output, CheckResult) and output.is_pass:
            return True
    return False


def _results(
    calls: Iterable[CheckCall], outputs: Mapping[str, CheckResult | UnreadableVerdict]
) -> dict[int, list[CheckResult]]:
    results: dict[int, list[CheckResult]] = {}
    for call in calls:
        output = outputs[call.name]
        if isinstance(output, CheckResult) and not call.control:
            results.setdefault(call.number, []).append(output)
    return results


def _evidence(checks: Sequence[CheckResult], edges: CheckEvidence) -> float:
    """What one judge's checks of an answer add to its log odds: its opinion counts once."""
    share = sum(result.chance for result in checks) / len(checks)
    return share * edges.passing + (1 - share) * edges.failing


def _verdict(
    call: CheckCall, output: CheckResult | UnreadableVerdict, *, is_broken: bool
) -> Verdict:
    (member,) = call.lineup.members
    winner, stage, void = None, None, "picked_control" if is_broken else None
    logprobs: tuple[float, ...] = ()
    if isinstance(output, CheckResult):
        winner = member if output.is_pass else None
        stage, logprobs = output.parse_stage, output.logprobs
    else:
        void = void or output.reason
    return Verdict(
        call=call.name,
        kind="check",
        judge_model=call.juror.model,
        shown=(member,),
        chars=tuple(len(answer.content) for answer in call.lineup.answers),
        control=call.control,
        winner=winner,
        rung=stage,
        logprobs=logprobs,
        void=void,
    )
