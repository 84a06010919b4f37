"""JSONL is split the same however the stream is cut."""

from collections.abc import AsyncIterator, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_ingest.admission.jsonl import BOM, lines, located_lines
from fusewire_ingest.admission.refusal import RefusedError

LIMIT = 12
LINE = st.binary(max_size=20) | st.text("é{}\r \t\ufeff", max_size=8).map(str.encode)


async def split(chunks: Iterable[bytes], limit: int = 10**6) -> list[tuple[int, bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [numbered_line async for numbered_line in lines(stream(), limit)]


@given(parts=st.lists(LINE, max_size=6), cuts=st.lists(st.integers(0, 150), max_size=8))
async def test_any_chunking_gives_the_same_lines(parts: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(parts)
    at = [0, *sorted(min(c, len(body)) for c in cuts), len(body)]
    chunks = [body[a:b] for a, b in pairwise(at)]

    assert await split(chunks, LIMIT) == await split([body], LIMIT)
    assert await split([bytes([b]) for b in body], LIMIT) == await split([body], LIMIT)


@given(
    parts=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").strip()), max_size=6)
)
async def test_line_i_has_number_i(parts: list[bytes]) -> None:
    numbered_lines = await split([b"\n".join(parts)])

    assert numbered_lines == [
        (i, part.removeprefix(b"\xef\xbb\xbf") if i == 1 else part)
        for i, part in enumerate(parts, 1)
        if (part.removeprefix(b"\xef\xbb\xbf") if i == 1 else part)
    ]


TABLE = [
    ("nothing", b"", []),
    ("one line", b"a", [(1, b"a")]),
    ("an end of line at the end", b"a\n", [(1, b"a")]),
    ("blank lines count", b"\n\na\n  \nb\n\n", [(3, b"a"), (5, b"b")]),
    ("Windows", b"a\r\n\r\nb\r\n", [(1, b"a"), (3, b"b")]),
    ("a byte order mark", b"\xef\xbb\xbfa\nb", [(1, b"a"), (2, b"b")]),
    ("a byte order mark alone", b"\xef\xbb\xbf\nb", [(2, b"b")]),
    ("a line separator inside a string is no end", "a\u2028b".encode(), [(1, "a\u2028b".encode())]),
]


@pytest.mark.parametrize(
    ("body", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
async def test_lines(body: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert await split([body]) == expected


async def test_a_long_line_is_cut_so_that_its_parser_refuses_it_and_the_next_is_whole() -> None:
    numbered_lines = await split([b"x" * 100, b"x" * 100, b"\nok\n"], LIMIT)

    assert numbered_lines == [(1, b"x" * (LIMIT + 1)), (2, b"ok")]


async def test_a_line_of_just_the_limit_is_whole() -> None:
    assert await split([b"x" * LIMIT + b"\n"], LIMIT) == [(1, b"x" * LIMIT)]


@pytest.mark.parametrize(
    "line",
    [
        # Cut to the limit, each of these was a line that fits, or none.
        BOM + b"x" * LIMIT + b"y",
        b"x" * LIMIT + b"\ry",
        BOM + b"x" * (LIMIT - 2) + b"yyyyy",
        b" " * (LIMIT + 4) + b"x",
        b"\r" * (LIMIT + 4) + b"x",
    ],
)
async def test_no_cut_makes_a_line_fit_or_vanish(line: bytes) -> None:
    ((number, cut),) = await split([line], LIMIT)

    assert (number, len(cut)) == (1, LIMIT + 1)


@pytest.mark.parametrize("line", [BOM + b"x" * LIMIT, b"x" * LIMIT + b"\r", b"x" * LIMIT + b"\r\r"])
async def test_what_is_stripped_does_not_count(line: bytes) -> None:
    assert await split([line + b"\n"], LIMIT) == [(1, b"x" * LIMIT)]


@given(
    parts=st.lists(LINE, max_size=6),
    cuts=st.lists(st.integers(0, 150), max_size=8),
)
async def test_a_line_is_read_again_at_its_offset(parts: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(parts)
    at = [0, *sorted(min(c, len(body)) for c in cuts), len(body)]

    async def stream() -> AsyncIterator[bytes]:
        for a, b in pairwise(at):
            yield body[a:b]

    async for number, offset, line in located_lines(stream(), LIMIT):
        assert body[offset : offset + len(line)] == line
        assert body[:offset].removesuffix(BOM).count(b"\n") == number - 1


async def test_more_lines_than_there_may_be_are_refused() -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"a\n\nb\n"

    assert [number async for number, _ in lines(stream(), LIMIT, most=3)] == [1, 3]
    with pytest.raises(RefusedError, match="more than 2 lines") as refused:
        _ = [number async for number, _ in lines(stream(), LIMIT, most=2)]
    assert refused.value.code == "invalid_request"
