"""Names of models: which spelling means which, and what is near to one that means none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_ingest.admission.model_names import MOST_NEAR, ModelNames, UnknownModelError, nearest

NAMES = ModelNames.of(
    {"gpt": "vendor/gpt-5", "edge": None, "twin-1": "vendor/twin", "twin-2": "vendor/twin"},
    {"best": "gpt"},
)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("gpt", "gpt"),
        ("vendor/gpt-5", "gpt"),
        ("best", "gpt"),
        ("~best", "gpt"),
        ("~vendor/gpt-5", "gpt"),
        ("edge", "edge"),
    ],
)
def test_a_spelling_means(asked: str, found: str) -> None:
    assert NAMES.resolve(asked) == found


@pytest.mark.parametrize("asked", ["vendor/twin", "gpt-5", "", "~", "GPT"])
def test_it_means_none(asked: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        NAMES.resolve(asked)
    assert caught.value.name == asked
    assert 0 < len(caught.value.near) <= MOST_NEAR


def test_our_name_wins_over_an_alias_and_that_over_the_providers() -> None:
    names = ModelNames.of({"a": "shared", "b": "other"}, {"shared": "b", "a": "b"})
    assert names.resolve("a") == "a"
    assert names.resolve("shared") == "b"


def test_the_nearest_stand_first() -> None:
    assert nearest("vendor/gpt-6", ["edge", "opus", "vendor/gpt-5"])[0] == "vendor/gpt-5"
    assert nearest("zzz", ["b", "a", "d", "c"]) == ["a", "b", "c"]
    assert nearest("x", []) == []


@given(st.text(max_size=20), st.lists(st.text(max_size=10)))
def test_at_most_three_names_are_near(name: str, known: list[str]) -> None:
    near = nearest(name, known)
    assert len(near) <= MOST_NEAR
    assert set(near) <= set(known)
    assert bool(near) == bool(known)
