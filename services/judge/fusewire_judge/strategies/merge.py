"""Merge: the judge compares the answers and writes one from all of them.

A guard then returns the best single answer instead, if the merge is worse.
"""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusewire.contracts import MERGED, Call, Candidate, Guard, ParseStage, PlannedJudge, Sampling
from fusewire.contracts.degraded import DegradedReason
from fusewire_judge.judging.ask import ask_json, run_together
from fusewire_judge.judging.ballot import poll
from fusewire_judge.judging.parse import UnreadableVerdict
from fusewire_judge.judging.prompts import (
    Lineup,
    analysis_messages,
    analysis_schema,
    clean,
    make_lineup,
    merge_messages,
    request_text,
)
from fusewire_judge.judging.tally import Tally
from fusewire_judge.model import (
    Case,
    Draft,
    MakeCalls,
    MemberAnswer,
    Panel,
    Replies,
    Steps,
    ready_calls,
)
from fusewire_judge.scoring.answers import agreement
from fusewire_judge.strategies.best_of import ask_judges, best_of, choose_medoid, odds_of
from fusewire_judge.strategies.grounding import ungrounded_claims

ANALYSIS_TOKENS = 768


@dataclass(frozen=True)
class MergedText:
    """A merge as the judge's model wrote it."""

    text: str
    """Empty if the writing failed."""
    lineup: Lineup
    parse_stage: ParseStage
    """Of the analysis; "fallback" if that failed."""
    analysis: dict[str, Any] | None
    degraded: tuple[DegradedReason, ...] = ()


def merge(case: Case, panel: Panel) -> Steps:
    """Write one answer from several; return it if it is no worse than the best of them.

    Closed answers are voted: there is nothing to merge in a number. While the merge is being
    written, the judges choose the best single answer; then the two are compared in both orders.
    The single answer is returned if it wins, and if the merge states a number, an address or an
    identifier that neither a candidate nor the request holds.
    """
    if panel.kind != "open":
        return (yield from best_of(case, panel))
    writer, answers = case.plan.judge, panel.answers
    if writer is None:
        return choose_medoid(answers, "no judge to merge, the answer most like the others")
    if not case.plan.policy.guard:
        merged_text = yield from _write(case, writer, answers)
        make_draft = _draft if merged_text.text else _failed_draft
        return make_draft(answers, merged_text)
    single, merged_text = yield from run_together(
        ask_judges(case, answers, odds_of(case, panel)), _write(case, writer, answers)
    )
    if not merged_text.text:
        degraded = (*single.degraded, *merged_text.degraded)
        return replace(single, analysis=merged_text.analysis, degraded=degraded)
    sources = [request_text(case.prompt), *(clean(answer.content) for answer in answers)]
    claims = ungrounded_claims(merged_text.text, sources)
    if claims:
        return _refuse_ungrounded(single, merged_text, claims)
    tally = yield from _poll_guard(case, writer, answers, single, merged_text)
    return _guarded_draft(single, _draft(answers, merged_text), merged_text, tally)


def _poll_guard(
    case: Case,
    writer: PlannedJudge,
    answers: Sequence[MemberAnswer],
    single: Draft,
    merged_text: MergedText,
) -> Generator[MakeCalls, Replies, Tally]:
    """Compare the merge with the best single answer.

    No judge votes on its own writing while there is another one.
    """
    merged_answer = MemberAnswer(MERGED, 1.0, merged_text.text, 0)
    best = next(answer for answer in answers if answer.member == single.winner)
    jurors = [juror for juror in case.plan.jurors if juror.model != writer.model]
    return (
        yield from poll(case, (merged_answer, best), "guard", "guard", jurors or case.plan.jurors)
    )


def _guarded_draft(single: Draft, draft: Draft, merged_text: MergedText, tally: Tally) -> Draft:
    """The merge, unless it lost to the single answer or no verdict on it counts."""
    verdicts = (*single.verdicts, *tally.verdicts)
    leaders = tally.leaders()
    if not leaders:
        fault = tally.faults[0] if tally.faults else "no_answer"
        single = _refuse(single, merged_text, "unjudged", "nobody could judge the merge")
        degraded = (*single.degraded, DegradedReason("guard_failed", fault))
        return replace(single, verdicts=verdicts, degraded=degraded)
    # A tie lets the merge through: refusing it gains little accuracy, and returns half as many
    # merges to those who asked for one (docs/decisions/0015).
    if leaders == [single.winner]:
        single = _refuse(single, merged_text, "lost", "the merge lost to it")
        return replace(single, verdicts=verdicts)
    void_reasons = tuple(DegradedReason("verdict_void", fault) for fault in tally.faults)
    degraded = (*draft.degraded, *void_reasons)
    return replace(draft, guard="passed", verdicts=verdicts, degraded=degraded)


def _refuse_ungrounded(single: Draft, merged_text: MergedText, claims: Sequence[str]) -> Draft:
    count = "a number, address or name"
    if len(claims) > 1:
        count = f"{len(claims)} numbers, addresses or names"
    return _refuse(
        single, merged_text, "ungrounded", f"the merge holds {count} that no candidate holds"
    )


def _refuse(single: Draft, merged_text: MergedText, guard: Guard, why: str) -> Draft:
    """The single answer in place of the merge."""
    return replace(
        single, guard=guard, analysis=merged_text.analysis, reason=f"{why}; {single.reason}"
    )


def _failed_draft(answers: Sequence[MemberAnswer], merged_text: MergedText) -> Draft:
    draft = choose_medoid(answers, "the merge failed, the answer most like the others")
    return replace(
        draft,
        lineup=merged_text.lineup.members,
        parse_stage="fallback",
        analysis=merged_text.analysis,
        degraded=merged_text.degraded,
    )


def _draft(answers: Sequence[MemberAnswer], merged_text: MergedText) -> Draft:
    return Draft(
        status="fused",
        content=merged_text.text,
        answers=tuple(answers),
        lineup=merged_text.lineup.members,
        parse_stage=merged_text.parse_stage,
        reason=f"merged from {len(answers)} answers",
        analysis=merged_text.analysis,
        agreement=agreement(answers),
        degraded=merged_text.degraded,
    )


# -- writing ----------------------------------------------------------------------------------


def _write(
    case: Case, writer: PlannedJudge, answers: Sequence[MemberAnswer]
) -> Generator[MakeCalls, Replies, MergedText]:
    """Have the answers compared, then a merge written."""
    lineup = make_lineup(answers, case.plan.seed, "merge")
    output = yield from ask_json(
        writer,
        "analysis",
        analysis_messages(case.prompt, lineup),
        analysis_schema(),
        expected_tokens=ANALYSIS_TOKENS,
    )
    analysis: dict[str, Any] | None = None
    parse_stage: ParseStage = "fallback"
    degraded: list[DegradedReason] = []
    if isinstance(output, UnreadableVerdict):
        degraded.append(DegradedReason("analysis_failed", output.reason))
    else:
        analysis, parse_stage = output
    call = Call(
        name="write",
        kind="write",
        model=writer.model,
        messages=merge_messages(case.prompt, lineup, json.dumps(analysis) if analysis else None),
        sampling=_without_chance(case.prompt.sampling),
        # A guard may yet refuse it (docs/decisions/0017).
        is_streamed=case.prompt.is_streamed and not case.plan.policy.guard,
    )
    replies = yield ready_calls(call)
    text, fault = _written_text(replies.get("write"), lineup)
    if fault:
        degraded.append(fault)
    by_member = _by_member(analysis, lineup) if analysis else None
    return MergedText(text, lineup, parse_stage, by_member, tuple(degraded))


def _written_text(reply: Candidate | None, lineup: Lineup) -> tuple[str, DegradedReason | None]:
    """The text of a merge, empty if there is none; and why the outcome is degraded by it."""
    if reply is None:
        return "", DegradedReason("merge_failed", "no_answer")
    if reply.error:
        return "", DegradedReason("merge_failed", reply.error.code)
    # Where it was streamed, the stream has left out these fences already (docs/decisions/0027).
    text = lineup.without_fences(reply.content or "")
    if not text:
        return "", DegradedReason("merge_failed", "no_answer")
    if reply.finish_reason == "length":
        return text, DegradedReason("merge_cut_at_length")
    return text, None


def _without_chance(sampling: Sampling) -> Sampling:
    """The client's sampling without what asks for variety: that was the members' part."""
    return sampling.model_copy(update={"temperature": None, "top_p": None, "seed": None})


def _by_member(analysis: Any, lineup: Lineup) -> Any:
    """Replace labels by members' names, at any depth of an analysis."""
    if isinstance(analysis, list):
        return [_by_member(entry, lineup) for entry in analysis]
    if not isinstance(analysis, dict):
        return analysis
    entries = {key: _by_member(entry, lineup) for key, entry in analysis.items()}
    if isinstance(entries.get("model"), str):
        entries["model"] = _member(entries["model"], lineup)
    if isinstance(entries.get("models"), list):
        entries["models"] = [_member(label, lineup) for label in entries["models"]]
    return entries


def _member(label: str, lineup: Lineup) -> str:
    label = label.strip().upper()
    return lineup.by_label(label).member if label in lineup.labels else "unknown"
