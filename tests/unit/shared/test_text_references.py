"""Long texts by reference: what stands aside, what stays, and back again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Image, Message
from fusewire.references import names, texts
from fusewire.references.texts import END_CHARS, LEAST_CHARS
from fusewire.tokens import estimate

LONG = "".join(f'{number} "ä\\ \n' for number in range(12_000))
SHORT = "x" * (LEAST_CHARS + 2 * END_CHARS - 1)


def user_message(content: str, *at: int) -> Message:
    images = tuple(Image(url=f"https://example.org/{place}.png", at=place) for place in at)
    return Message(role="user", content=content, images=images)


def test_the_middle_of_a_long_one_stands_aside_and_its_ends_stay() -> None:
    (slim, short), apart = texts.put_aside("acme", (user_message(LONG), user_message(SHORT)))

    ((name, data),) = apart.items()
    middle = LONG[END_CHARS:-END_CHARS]
    assert json.loads(f'"{data}"') == middle
    assert slim.content == LONG[:END_CHARS] + LONG[-END_CHARS:]
    (reference,) = slim.texts
    assert (reference.name, reference.chars, reference.size, reference.at) == (
        name,
        len(middle),
        len(middle.encode()),
        END_CHARS,
    )
    assert short == user_message(SHORT)
    assert names((slim, short)) == (name,)


def test_no_tenant_has_the_name_of_anothers() -> None:
    _, mine = texts.put_aside("acme", (user_message(LONG),))
    _, theirs = texts.put_aside("umbrella", (user_message(LONG),))

    assert mine.keys().isdisjoint(theirs)


def test_who_reads_the_ends_is_told_what_is_left_out() -> None:
    slim, _ = texts.put_aside("acme", (user_message(LONG),))

    (message,) = texts.excerpt(slim)

    left_out = len(LONG) - 2 * END_CHARS
    assert message.content == (
        f"{LONG[:END_CHARS]}\n\n[{left_out} characters are left out here]\n\n{LONG[-END_CHARS:]}"
    )
    assert message.texts == ()


def test_one_that_is_not_there_is_user_message() -> None:
    slim, apart = texts.put_aside("acme", (user_message(LONG),))

    with pytest.raises(KeyError, match=next(iter(apart))):
        texts.put_back(slim, {})


def test_a_text_that_stands_apart_counts_for_caps_of_tokens() -> None:
    slim, _ = texts.put_aside("acme", (user_message(LONG),))

    assert estimate(slim, 1) == estimate((user_message(LONG),), 1) == len(LONG) // 4 + 1


def test_an_image_beyond_the_end_takes_no_end_away() -> None:
    (slim,), apart = texts.put_aside("acme", (user_message(LONG, len(LONG) + 999),))

    assert slim.content.endswith(LONG[-END_CHARS:])
    assert texts.put_back((slim,), apart) == (user_message(LONG, len(LONG) + 999),)


@given(st.lists(st.integers(0, len(LONG)), max_size=4), st.booleans())
def test_back_is_as_before_with_images_between(places: list[int], is_twice: bool) -> None:
    messages = (user_message(LONG, *sorted(places)),) * (1 + is_twice)
    slim, apart = texts.put_aside("acme", messages)

    assert texts.put_back(slim, apart) == messages
    assert texts.put_aside("acme", slim) == (slim, {})
    places_after = [image.at for image in slim[0].images]
    assert places_after == sorted(places_after)
    assert all(image.at <= len(slim[0].content) for image in slim[0].images)
