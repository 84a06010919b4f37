"""Which member's text each sentence of a merge is closest to: a computed guess, no record."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fusewire_console.figures.differences import words

LEAST_SHARE = 0.6
"""A sentence that shares a smaller part of its words with every member is the writer's own."""
LEAST_WORDS = 4
"""A shorter sentence, such as a heading, could be anybody's."""
MOST_PAIRS = 40_000
"""Sentences of the merge times those of all members; more are not compared."""

_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True)
class MergedPart:
    """A sentence of a merge."""

    text: str
    members: tuple[str, ...]
    """Those with the closest sentence, all of them on a tie; empty if none is close, or if the
    sentence is too short to tell."""
    share: float | None
    """The share of its words that this closest sentence holds; None if it is too short."""


def sentences(text: str) -> list[str]:
    r"""The sentences of a text, roughly.

    >>> sentences("It is 3.5. Really?\n\nYes")
    ['It is 3.5.', 'Really?', 'Yes']
    """
    return [part.strip() for part in _END.split(text) if part.strip()]


def trace(merge: str, answers: Mapping[str, str]) -> list[MergedPart] | None:
    """Find the closest sentences of members for each sentence of a merge.

    Args:
        merge: the text that was written from the answers.
        answers: the texts by member.

    Returns:
        The sentences of the merge in order; None if there are too many to compare.
    """
    parts = sentences(merge)
    by_member = {member: _word_sets(text) for member, text in answers.items()}
    if len(parts) * sum(map(len, by_member.values())) > MOST_PAIRS:
        return None
    return [_part(part, by_member) for part in parts]


def _word_sets(text: str) -> list[frozenset[str]]:
    return [frozenset(words(sentence)) for sentence in sentences(text)]


def _part(part: str, by_member: Mapping[str, list[frozenset[str]]]) -> MergedPart:
    own_words = frozenset(words(part))
    if len(own_words) < LEAST_WORDS:
        return MergedPart(part, (), None)
    counts = {member: _most_common(own_words, sets) for member, sets in by_member.items()}
    best = max(counts.values(), default=0)
    share = best / len(own_words)
    members = [member for member, count in counts.items() if count == best]
    return MergedPart(part, tuple(members) if share >= LEAST_SHARE else (), share)


def _most_common(own_words: frozenset[str], word_sets: list[frozenset[str]]) -> int:
    return max((len(own_words & word_set) for word_set in word_sets), default=0)
