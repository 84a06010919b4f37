"""The judge's comparison of the answers, which a merge is written from, as lines of text."""

from collections.abc import Mapping

_TITLES = {
    "consensus": "What all say",
    "contradictions": "Where they contradict each other",
    "partial_coverage": "What only some say",
    "unique_insights": "What one alone says",
    "blind_spots": "What none says",
}

_POINTS = ("topic", "stance", "point", "insight")


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
    parts = [(title, _texts(analysis.get(key))) for key, title in _TITLES.items()]
    return [(title, texts) for title, texts in parts if texts]


def _texts(entries: object) -> list[str]:
    if not isinstance(entries, list):
        return []
    return [text for text in map(_text, entries) if text]


def _text(entry: object) -> str:
    """An entry on one line: whom it is about, and what is said."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping):
        return ""
    members = entry.get("model") or entry.get("models")
    if isinstance(members, list):
        members = ", ".join(map(str, members))
    stances = "; ".join(_texts(entry.get("stances")))
    parts = (members, *(entry.get(key) for key in _POINTS), stances)
    return ": ".join(str(part) for part in parts if part)
