"""Codes of outcomes as sentences. What another version wrote, and this one does not know, stays."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from fusewire.contracts.degraded import DegradedReason

_REASONS = {
    "excluded": "{subject} was not asked: {detail}.",
    "missing": "{subject} had not answered when the panel closed{share}.",
    "failed": "{subject} failed: {detail}.",
    "empty": "{subject} gave an empty answer, which does not count.",
    "refused": "{subject} refused to answer, which does not count.",
    "looped": "{subject} repeated itself without end, which does not count.",
    "no_call": "{subject} called no tool where one was required, which does not count.",
    "off_schema": "{subject} did not keep to the form that was asked for, so it does not count.",
    "invalid_call": "{subject} made a tool call that is not valid, which does not count.",
    "winner_cut": "The answer of {subject} ends at its token limit.",
    "schema_unmet": "The answer does not have the form that was asked for.",
    "merge_cut_at_length": "The merge ends at its token limit.",
    "judge_failed": "The judge gave no usable verdict: {subject}. A rule decided.",
    "verdict_void": "A verdict does not count: {subject}.",
    "guard_failed": "No judge could check the merge: {subject}.",
    "analysis_failed": "The judge's comparison of the answers failed: {subject}.",
    "merge_failed": "The merge was not written: {subject}. An answer was chosen instead.",
    "capped": "The limit of {subject} for one prompt was reached, so a step was left out.",
    "never_planned": "No dispatcher took it before its deadline.",
    "undecidable": "The judge failed on it repeatedly.",
}
_WITHOUT_MEMBER = frozenset(
    {"judge_failed", "verdict_void", "guard_failed", "analysis_failed", "merge_failed", "capped"}
)
"""Reasons whose subject is a code, and no member's name."""
_DETAILS = {
    "residency": "its residency keeps it from there",
    "unknown_pool": "there is no such pool",
    "unknown_model": "its model is not configured",
    "no_tools": "its model takes no tools",
    "no_images": "its model takes no images",
    "no_long_texts": "its model takes no text of this length",
    "quarantined": "it preferred empty answers that were shown to it as controls",
    "token_cap": "the token limit of the prompt left no room",
    "picked_control": "the judge preferred an empty answer that was among them as a control",
    "one_order": "only one of the two orders could be read",
    "not_json": "the judge wrote no JSON",
    "schema_mismatch": "the judge's JSON has another form",
    "ambiguous": "the judge's JSON names a winner twice",
    "no_answer": "the judge did not answer",
    "no_probabilities": "the judge gave no probabilities",
    "timeout": "it took too long",
}
_CLOSED_BY = {
    "complete": "every member had answered or failed",
    "certain": "the vote was decided, whoever was still missing",
    "likely": "the vote was probably decided",
    "gate": "the edge members agreed, so the hosted ones were not needed",
    "quorum": "enough weight had answered, and the grace after that was over",
    "deadline": "the panel's deadline had come",
}
_GUARDS = {
    "passed": "The merge was compared with the best single answer, and is no worse.",
    "lost": "A merge was written and lost to the best single answer, which is returned.",
    "ungrounded": "A merge was written and stated what no answer holds, so it was refused.",
    "unjudged": "A merge was written, but no judge could compare it, so it was refused.",
}
_PARSES = {
    "repaired": "A verdict was read from broken JSON.",
    "reasked": "A verdict could be read only after the judge was asked again.",
    "fallback": "No verdict could be read, so a rule decided.",
}


def degraded(reasons: Sequence[str]) -> list[str]:
    """Why an outcome is degraded, a sentence for each reason.

    >>> degraded(["missing:gpt:0.33:deadline", "new_code:x"])
    ['gpt had not answered when the panel closed; it has 33 % of the weight.', 'new_code:x']
    """
    return [_degraded(DegradedReason.parse(reason)) for reason in reasons]


def _degraded(reason: DegradedReason) -> str:
    sentence = _REASONS.get(reason.code)
    if sentence is None:
        return str(reason)
    parts = reason.split(":", 2)
    detail = parts[2] if len(parts) > 2 else ""
    share = ""
    with contextlib.suppress(ValueError):
        share = f"; it has {100 * float(detail.partition(':')[0]):.0f} % of the weight"
    # Names and codes may hold braces, so they are put in and never formatted themselves.
    subject = reason.subject or "it"
    if reason.code in _WITHOUT_MEMBER:
        subject = code(subject)
    values = {"subject": subject, "detail": code(detail), "share": share}
    return sentence.format_map(values)


def code(text: str) -> str:
    """A code in words; what is unknown stays, its underlines as spaces.

    >>> code("not_json"), code("rate_limited")
    ('the judge wrote no JSON', 'rate limited')
    """
    return _DETAILS.get(text, text.replace("_", " "))


def ending(outcome: Mapping[str, Any]) -> list[str]:
    """Why an outcome came about as it did, in the order in which it happened.

    Args:
        outcome: a row of `v_outcome`.
    """
    sentences = []
    if outcome["closed_by"]:
        why = _CLOSED_BY.get(outcome["closed_by"], outcome["closed_by"])
        sentences.append(f"The panel closed because {why}.")
    if outcome["hedges"]:
        calls = "call" if outcome["hedges"] == 1 else "calls"
        sentences.append(f"Slow members were asked again, in {outcome['hedges']} {calls}.")
    for texts, key in ((_PARSES, "verdict_parse"), (_GUARDS, "guard")):
        if outcome[key] in texts:
            sentences.append(texts[outcome[key]])
    if outcome["missing_weight"]:
        share = f"{100 * outcome['missing_weight']:.0f} %"
        sentences.append(f"Of the pool's weight, {share} had no part in it.")
    if outcome["is_replay"]:
        sentences.append("Its answers were recorded earlier, so no member was called.")
    return sentences
