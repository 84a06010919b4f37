"""Large images by reference: what stands aside, under which name, and back again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Image, Message
from fusewire.references import images

SMALL = "data:image/png;base64," + "a" * 100
LARGE = "data:image/png;base64," + "a" * images.LEAST_CHARS
OTHER = "data:image/png;base64," + "b" * images.LEAST_CHARS
AWAY = "https://example.org/" + "a" * images.LEAST_CHARS


def message_with(*urls: str) -> Message:
    return Message(
        role="user",
        content="Which?",
        images=tuple(Image(url=url, detail="low", at=3) for url in urls),
    )


def test_large_ones_stand_aside_and_all_else_stays() -> None:
    messages = (Message(role="system", content="Look."), message_with(SMALL, LARGE, AWAY))

    slim, apart = images.put_aside("acme", messages)

    ((name, data),) = apart.items()
    assert f"data:image/png;base64,{data}" == LARGE
    assert slim == (messages[0], message_with(SMALL, f"data:image/png;base64,blob:{name}", AWAY))
    assert images.names(slim) == (name,)


def test_one_that_is_shown_twice_is_kept_once() -> None:
    slim, apart = images.put_aside("acme", (message_with(LARGE, OTHER), message_with(LARGE)))

    assert sorted(apart.values()) == [LARGE.partition(",")[2], OTHER.partition(",")[2]]
    assert len(images.names(slim)) == 2


def test_no_tenant_has_the_name_of_anothers() -> None:
    _, mine = images.put_aside("acme", (message_with(LARGE),))
    _, theirs = images.put_aside("umbrella", (message_with(LARGE),))

    assert mine.keys().isdisjoint(theirs)


def test_one_that_is_not_there_is_said() -> None:
    slim, apart = images.put_aside("acme", (message_with(LARGE),))

    with pytest.raises(KeyError, match=next(iter(apart))):
        images.put_back(slim, {})


@given(st.lists(st.lists(st.sampled_from([SMALL, LARGE, OTHER, AWAY]), max_size=3), max_size=3))
def test_back_is_as_before(urls: list[list[str]]) -> None:
    messages = tuple(message_with(*some) for some in urls)
    slim, apart = images.put_aside("acme", messages)

    assert images.put_back(slim, apart) == messages
    assert images.put_aside("acme", slim) == (slim, {})
