"""What can be told of a merge before the whole of it is known."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.fence import HEX, UnfencedPrefix, without

FENCE = "0123456789abcdef" * 2
OTHER = FENCE[::-1]
BITS = [
    "Paris",
    " ",
    "\n",
    "\u3000",
    "[",
    "[[",
    "]]",
    "[[/",
    f"[[{FENCE} BC]]",
    f"[[/{FENCE} BC]]\n",
    f"[[{OTHER}",
]
BITS += [f"[[{FENCE[:20]}", FENCE[20:], "a", "/", f"[[{FENCE} never closed"]


def stream(pieces: Iterable[str]) -> str:
    prefix = UnfencedPrefix()
    return "".join(prefix.add(piece) for piece in pieces)


@given(st.lists(st.sampled_from(BITS)).map("".join), st.integers(1, 8))
def test_what_is_told_stays_whatever_comes(text: str, size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]

    assert without(FENCE, text).startswith(stream(pieces))
    assert stream(pieces) == stream(text)


SHOWN = [
    ("words", "It is blue, and this\n\nis why.", "It is blue, and this\n\nis why."),
    ("space around", " \n Paris. \n", "Paris."),
    ("brackets", "[[1, 2], [3]] and [x] [[/usr]]", "[[1, 2], [3]] and [x] [[/usr]]"),
    ("an end that may become a fence", "see [[ab", "see"),
    ("a fence", f"Hello \n[[{FENCE} BC]]\nworld", "Hello"),
    ("a fence of another call", f"Hello [[/{OTHER} BC]] world", "Hello"),
    ("a name that is too short", f"[[{FENCE[:-1]}]] x", f"[[{FENCE[:-1]}]] x"),
    ("only a fence", f"[[{FENCE} BC]]\n", ""),
]


@pytest.mark.parametrize(
    ("text", "expected"), [row[1:] for row in SHOWN], ids=[row[0] for row in SHOWN]
)
def test_all_that_is_certain_is_stream(text: str, expected: str) -> None:
    assert len(FENCE) == HEX
    assert stream(text) == expected
    assert stream([text]) == expected


def test_each_piece_is_told_at_once_but_for_the_space_at_its_end() -> None:
    prefix = UnfencedPrefix()

    assert [prefix.add(piece) for piece in ("It", " is ", "blue", ".\n", "[", "x")] == [
        "It",
        " is",
        " blue",
        ".",
        "",
        "\n[x",
    ]
