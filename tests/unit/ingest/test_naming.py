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
    ("name", "model"),
    [
        ("gpt", "gpt"),
        ("vendor/gpt-5", "gpt"),
        ("best", "gpt"),
        ("~best", "gpt"),
        ("~vendor/gpt-5", "gpt"),
        ("edge", "edge"),
    ],
)
def test_a_spelling_means(name: str, model: str) -> None:
    assert NAMES.resolve(name) == model


@pytest.mark.parametrize("name", ["vendor/twin", "gpt-5", "", "~", "GPT"])
def test_it_means_none(name: str) -> None:
    with pytest.raises(UnknownModelError) as exc_info:
        NAMES.resolve(name)
    assert exc_info.value.name == name
    assert 0 < len(exc_info.value.near) <= MOST_NEAR


def test_our_name_wins_over_an_alias_and_that_over_the_providers() -> None:
    names = ModelNames.of({"a": "shared", "b": "other"}, {"shared": "b", "a": "b"})
    assert names.resolve("a") == "a"
    assert names.resolve("shared") == "b"


def test_the_nearest_stand_first() -> None:
    assert nearest("vendor/gpt-6", ["edge", "opus", "vendor/gpt-5"])[0] == "vendor/gpt-5"
    assert nearest("zzz", ["b", "a", "d", "c"]) == ["a", "b", "c"]
    assert nearest("x", []) == []


@given(st.text(max_size=20), st.lists(st.text(max_size=10)))
def test_at_most_three_names_are_near(name: str, names: list[str]) -> None:
    near = nearest(name, names)
    assert len(near) <= MOST_NEAR
    assert set(near) <= set(names)
    assert bool(near) == bool(names)
