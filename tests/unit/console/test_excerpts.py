"""How much of long texts a page shows."""

import json
from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_console.figures.excerpts import JSON_BYTES, MOST_CHARS, PAGE_BYTES, cut, short_json


@pytest.mark.parametrize("letter", ["a", "<", "'", "語", "😀", "e\u0301"])
def test_nine_texts_of_a_megabyte_fit_on_a_page(letter: str) -> None:
    starts = cut([letter * 1_000_000] * 9)
    assert len(set(starts)) == 1
    size = sum(len(escape(start).encode()) for start in starts)
    assert PAGE_BYTES * 0.95 < size <= PAGE_BYTES


def test_a_short_text_leaves_its_room_to_a_long_one() -> None:
    starts = cut(["short", "x" * 1_000_000, "y" * 15_000])
    assert [len(start) for start in starts] == [5, MOST_CHARS, 15_000]


@given(st.lists(st.text(max_size=40), max_size=5))
def test_short_texts_are_whole(texts: list[str]) -> None:
    assert cut(texts) == texts


def test_json_is_cut_where_its_strings_are_long() -> None:
    value = {"a": ["x" * 1000, 1, None], "b": {"c": "y" * 300}}
    shown = json.loads(short_json(value))
    assert shown["a"] == ["x" * 300 + "… (1,000 characters)", 1, None]
    assert shown["b"] == value["b"]
    assert 19_000 < len(escape(short_json(['"' * 299] * 10_000)).encode()) <= JSON_BYTES
