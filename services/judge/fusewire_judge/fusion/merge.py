"""Merge: the judge compares the answers, then writes one from all of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusewire.contracts import Call, Rung, Sampling
from fusewire_judge.answers import agreement
from fusewire_judge.fusion.best_of import ask_json, by_likeness, vote
from fusewire_judge.fusion.case import Case, Draft, Said, Steps
from fusewire_judge.fusion.wording import Lineup, analysis, analysis_schema, lineup, write
from fusewire_judge.verdict import Unreadable

ANALYSIS_TOKENS = 768


def merge(case: Case, said: Sequence[Said]) -> Steps:
    """Write one answer from several. Closed answers are voted: there is nothing to merge in a number.

    Args:
        case: the fusion.
        said: at least two answers.
    """
    voted = vote(case, said)
    if voted is not None:
        return voted
    judge = case.plan.judge
    if judge is None:
        return by_likeness(said, "no judge to merge, the answer most like the others")
    shown = lineup(said, case.plan.seed, "merge")
    found = yield from ask_json(
        judge, "analysis", analysis(case.prompt, shown), analysis_schema(), max_tokens=ANALYSIS_TOKENS
    )
    value: dict[str, Any] | None = None
    rung: Rung = "fallback"
    degraded: tuple[str, ...] = ()
    if isinstance(found, Unreadable):
        degraded = (f"analysis_failed:{found.reason}",)
    else:
        value, rung = found
    call = Call(
        name="write",
        kind="write",
        model=judge.model,
        messages=write(case.prompt, shown, json.dumps(value) if value else None),
        sampling=_without_chance(case.prompt.sampling),
    )
    replies = yield (call,)
    reply = replies.get("write")
    named = _by_member(value, shown) if value else None
    written = shown.without_fences(reply.content or "") if reply and reply.ok else ""
    if reply is None or not written:
        why = reply.error.code if reply and reply.error else "no_answer"
        single = by_likeness(said, "the merge failed, the answer most like the others")
        return replace(
            single,
            shown=shown.members,
            rung="fallback",
            analysis=named,
            degraded=(*degraded, f"merge_failed:{why}"),
        )
    if reply.finish_reason == "length":
        degraded = (*degraded, "merge_cut_at_length")
    return Draft(
        status="fused",
        content=written,
        said=tuple(said),
        shown=shown.members,
        rung=rung,
        reason=f"merged from {len(said)} answers",
        analysis=named,
        agreement=agreement(said),
        degraded=degraded,
    )


def _without_chance(sampling: Sampling) -> Sampling:
    """The client's sampling, but without chance: the members were the place for variety."""
    return sampling.model_copy(update={"temperature": 0.0, "seed": None})


def _by_member(value: Any, shown: Lineup) -> Any:
    """Put members' names where the analysis has letters."""
    if isinstance(value, list):
        return [_by_member(item, shown) for item in value]
    if not isinstance(value, dict):
        return value
    named = {key: _by_member(item, shown) for key, item in value.items()}
    if isinstance(named.get("model"), str):
        named["model"] = _member(named["model"], shown)
    if isinstance(named.get("models"), list):
        named["models"] = [_member(letter, shown) for letter in named["models"]]
    return named


def _member(letter: str, shown: Lineup) -> str:
    letter = letter.strip().upper()
    return shown.by_label(letter).member if letter in shown.labels else "unknown"
