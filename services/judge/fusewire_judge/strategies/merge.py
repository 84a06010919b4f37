"""Merge: the judge compares the answers, then writes one from all of them, which must hold its own."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusewire.contracts import MERGED, Call, Guard, ParseStage, PlannedJudge, Sampling
from fusewire_judge.judging.ballot import Tally, ask_json, both, poll
from fusewire_judge.judging.parse import UnreadableVerdict
from fusewire_judge.judging.prompts import (
    Lineup,
    analysis,
    analysis_schema,
    clean,
    lineup,
    request,
    write,
)
from fusewire_judge.model import Case, Draft, MemberAnswer, Panel, Replies, Steps, Wanted, wanted
from fusewire_judge.scoring.answers import agreement
from fusewire_judge.strategies.best_of import best_of, by_likeness, judged
from fusewire_judge.strategies.grounding import ungrounded

ANALYSIS_TOKENS = 768


@dataclass(frozen=True)
class MergedText:
    """A merge as it was written."""

    text: str
    """Empty if the writing failed."""
    shown: Lineup
    rung: ParseStage
    analysis: dict[str, Any] | None
    degraded: tuple[str, ...] = ()


def merge(case: Case, panel: Panel) -> Steps:
    """Write one answer from several; return it if it is no worse than the best of them.

    Closed answers are voted: there is nothing to merge in a number. While the merge is being
    written, the judges choose the best single answer; then the two are compared in both
    orders. The single answer is returned where it wins, and where the merge states a number,
    an address or an identifier that no candidate and not the request holds.
    """
    if panel.kind != "open":
        return (yield from best_of(case, panel))
    writer, answers = case.plan.judge, panel.answers
    if writer is None:
        return by_likeness(answers, "no judge to merge, the answer most like the others")
    if not case.plan.policy.guard:
        written = yield from _written(case, writer, answers)
        return _draft(answers, written) if written.text else _failed(answers, written)
    single, written = yield from both(judged(case, answers), _written(case, writer, answers))
    if not written.text:
        failed = _failed(answers, written)
        return replace(
            single, analysis=written.analysis, degraded=(*single.degraded, *failed.degraded)
        )
    if claims := ungrounded(
        written.text, [request(case.prompt), *(clean(one.content) for one in answers)]
    ):
        found = (
            f"{len(claims)} numbers, addresses or names"
            if len(claims) > 1
            else "a number, address or name"
        )
        return _refused(
            single, written, "ungrounded", f"the merge holds {found} that no candidate holds"
        )
    merged = MemberAnswer(MERGED, 1.0, written.text, 0)
    best = next(one for one in answers if one.member == single.winner)
    # Nobody judges its own writing while there is somebody else.
    jurors = [one for one in case.plan.jurors if one.model != writer.model] or case.plan.jurors
    count = yield from poll(case, (merged, best), "guard", "guard", jurors)
    return _guarded(single, _draft(answers, written), written, count)


def _guarded(single: Draft, draft: Draft, written: MergedText, count: Tally) -> Draft:
    verdicts = (*single.verdicts, *count.verdicts)
    leaders = count.leaders()
    if not leaders:
        fault = count.faults[0] if count.faults else "no_answer"
        refused = _refused(single, written, "unjudged", "nobody could judge the merge")
        return replace(
            refused, verdicts=verdicts, degraded=(*refused.degraded, f"guard_failed:{fault}")
        )
    if leaders == [single.winner]:
        return replace(_refused(single, written, "lost", "the merge lost to it"), verdicts=verdicts)
    degraded = tuple(f"verdict_void:{fault}" for fault in count.faults)
    return replace(draft, guard="passed", verdicts=verdicts, degraded=(*draft.degraded, *degraded))


def _refused(single: Draft, written: MergedText, guard: Guard, why: str) -> Draft:
    return replace(single, guard=guard, analysis=written.analysis, reason=f"{why}; {single.reason}")


def _failed(answers: Sequence[MemberAnswer], written: MergedText) -> Draft:
    single = by_likeness(answers, "the merge failed, the answer most like the others")
    return replace(
        single,
        shown=written.shown.members,
        rung="fallback",
        analysis=written.analysis,
        degraded=written.degraded,
    )


def _draft(answers: Sequence[MemberAnswer], written: MergedText) -> Draft:
    return Draft(
        status="fused",
        content=written.text,
        answers=tuple(answers),
        shown=written.shown.members,
        rung=written.rung,
        reason=f"merged from {len(answers)} answers",
        analysis=written.analysis,
        agreement=agreement(answers),
        degraded=written.degraded,
    )


def _written(
    case: Case, writer: PlannedJudge, answers: Sequence[MemberAnswer]
) -> Generator[Wanted, Replies, MergedText]:
    """Compare, then write."""
    shown = lineup(answers, case.plan.seed, "merge")
    found = yield from ask_json(
        writer,
        "analysis",
        analysis(case.prompt, shown),
        analysis_schema(),
        expected_tokens=ANALYSIS_TOKENS,
    )
    value: dict[str, Any] | None = None
    rung: ParseStage = "fallback"
    degraded: tuple[str, ...] = ()
    if isinstance(found, UnreadableVerdict):
        degraded = (f"analysis_failed:{found.reason}",)
    else:
        value, rung = found
    call = Call(
        name="write",
        kind="write",
        model=writer.model,
        messages=write(case.prompt, shown, json.dumps(value) if value else None),
        sampling=_without_chance(case.prompt.sampling),
        # A guard may yet refuse it.
        is_streamed=case.prompt.is_streamed and not case.plan.policy.guard,
    )
    replies = yield wanted(call)
    reply = replies.get("write")
    written = (reply.content or "") if reply and reply.ok else ""
    # Where it was read while it was written, nothing was told that this takes out.
    text = shown.without_fences(written)
    if reply is None or not text:
        degraded = (
            *degraded,
            f"merge_failed:{reply.error.code if reply and reply.error else 'no_answer'}",
        )
    elif reply.finish_reason == "length":
        degraded = (*degraded, "merge_cut_at_length")
    return MergedText(text, shown, rung, _by_member(value, shown) if value else None, degraded)


def _without_chance(sampling: Sampling) -> Sampling:
    """The client's sampling without what asks for variety: the members were the place for that."""
    return sampling.model_copy(update={"temperature": None, "top_p": None, "seed": None})


def _by_member(value: Any, shown: Lineup) -> Any:
    """Put members' names where the analysis has labels."""
    if isinstance(value, list):
        return [_by_member(item, shown) for item in value]
    if not isinstance(value, dict):
        return value
    named = {key: _by_member(item, shown) for key, item in value.items()}
    if isinstance(named.get("model"), str):
        named["model"] = _member(named["model"], shown)
    if isinstance(named.get("models"), list):
        named["models"] = [_member(label, shown) for label in named["models"]]
    return named


def _member(label: str, shown: Lineup) -> str:
    label = label.strip().upper()
    return shown.by_label(label).member if label in shown.labels else "unknown"
