"""How a text differs from another one, word by word."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_WORDS = 1500
"""Of each text. The time grows with the product of both: 1,500 words take some 5 ms."""
MERGED_WORDS = 3
"""Fewer words than this between two marks are marked with them: single words that two texts share
by chance would make confetti of a text that is another one altogether."""
UNLIKE_WORDS, UNLIKE_SHARE = 20, 0.7

# Han, Hiragana, Katakana: scripts without spaces, in which a character stands for a word.
_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class TextRun:
    """A part of a text; runs in order are the whole of it."""

    text: str
    is_own: bool
    """Whether the other text lacks its words."""


@dataclass(frozen=True)
class TextComparison:
    """A text beside a reference."""

    runs: tuple[TextRun, ...]
    n_words: int
    n_own: int
    """Words that the reference lacks, in this order."""
    n_lacking: int
    """Words of the reference that the text lacks."""

    @property
    def is_unlike(self) -> bool:
        """Whether it is a text of its own altogether, so that marks would only disturb."""
        return self.n_words >= UNLIKE_WORDS and self.n_own > UNLIKE_SHARE * self.n_words


def compare(text: str, reference: str) -> TextComparison | None:
    """Compare the words of two texts, without regard to case and to punctuation around words.

    Returns:
        None if a text has more than MOST_WORDS words.

    >>> compare("It is 43, I think.", "it is 42").runs[1]
    TextRun(text='43, I think.', is_own=True)
    """
    found_words = list(_WORD.finditer(text))
    reference_keys = words(reference)
    if max(len(found_words), len(reference_keys)) > MOST_WORDS:
        return None
    keys = [_key(match[0]) for match in found_words]
    common = common_positions(keys, reference_keys)
    own = [place for place in range(len(keys)) if place not in common]
    spans = [(found_words[a].start(), found_words[b].end()) for a, b in _join(own)]
    return TextComparison(
        _runs(text, spans), len(keys), len(own), len(reference_keys) - len(common)
    )


def words(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> words("The answer: **42**!")
    ['the', 'answer', '42', '!']
    """
    return [_key(word) for word in _WORD.findall(text)]


def _key(word: str) -> str:
    return _EDGES.sub("", word).casefold() or word


def common_positions(first: Sequence[str], second: Sequence[str]) -> set[int]:
    """The positions in `first` of a longest common subsequence of two lists.

    Bit-parallel (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): each row of the
    table is one integer, whose zeros are where the length grows. So its time has a bound, which
    that of difflib has not.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(second)) - 1
    row, rows = whole, [whole]
    for word in first:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & whole
        rows.append(row)
    return _trace(rows, len(second))


def _trace(rows: Sequence[int], column: int) -> set[int]:
    """Walk back from the table's end, where a zero says that the length grew in this column."""
    positions: set[int] = set()
    line = len(rows) - 1
    while line and column:
        bit = 1 << (column - 1)
        if rows[line] & bit:
            column -= 1
            continue
        line -= 1
        # Where it had grown in the row before too, this row's word is no part of it.
        if rows[line] & bit:
            positions.add(line)
            column -= 1
    return positions


def _join(places: Sequence[int]) -> list[tuple[int, int]]:
    """First and last places of the marks, those close together joined."""
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and place - spans[-1][1] <= MERGED_WORDS:
            spans[-1] = spans[-1][0], place
        else:
            spans.append((place, place))
    return spans


def _runs(text: str, spans: Sequence[tuple[int, int]]) -> tuple[TextRun, ...]:
    runs, end = [], 0
    for start, stop in spans:
        runs += [TextRun(text[end:start], is_own=False), TextRun(text[start:stop], is_own=True)]
        end = stop
    runs.append(TextRun(text[end:], is_own=False))
    return tuple(run for run in runs if run.text)
