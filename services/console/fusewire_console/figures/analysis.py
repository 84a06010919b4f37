"""The judge's comparison of the answers, which a merge is written from, as lines of text."""

from collections.abc import Mapping
from typing import Any

_TITLES = {
    "consensus": "What all say",
    "contradictions": "Where they contradict each other",
    "partial_coverage": "What only some say",
    "unique_insights": "What one alone says",
    "blind_spots": "What none says",
}


def lines(analysis: object) -> list[tuple[str, list[str]]]:
    """Titles with the lines below each; parts without a line are left out.

    Args:
        analysis: as an outcome holds it, with members' names. Its form is not relied on: a model
            wrote it.

    >>> lines({"unique_insights": [{"model": "gpt", "insight": "It is prime."}]})
    [('What one alone says', ['gpt: It is prime.'])]
    """
    if not isinstance(analysis, Mapping):
        return []
    parts = []
    for key, title in _TITLES.items():
        entries = analysis.get(key)
        texts = [_line(entry) for entry in entries] if isinstance(entries, list) else []
        if any(texts):
            parts.append((title, [text for text in texts if text]))
    return parts


def _line(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping):
        return ""
    who = entry.get("model") or entry.get("models")
    names = ", ".join(map(str, who)) if isinstance(who, list) else who
    what = entry.get("insight") or entry.get("point") or entry.get("stance") or entry.get("topic")
    stances = entry.get("stances")
    if isinstance(stances, list):
        what = f"{what or ''}: " + "; ".join(filter(None, map(_line, stances)))
    return ": ".join(str(part) for part in (names, what) if part)
