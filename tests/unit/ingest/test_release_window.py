"""The window of lines: shorter while others send prompts and the process is late."""

import pytest

from fusewire_ingest.release_window import (
    ADJUST_EVERY_S,
    LATE_S,
    LEAST,
    OTHERS_S,
    SPREAD,
    ReleaseWindow,
)

LATE, PROMPT = 2 * LATE_S, LATE_S / 2


def sizes(window: ReleaseWindow, late_s: float, times: int, *, since: float = 0.0) -> list[int]:
    """Its sizes over several adjustments, while prompts come."""
    moments = [since + (number + 1) * ADJUST_EVERY_S for number in range(times)]
    return [window.adjust(late_s, now, now) for now in moments]


def test_it_is_whole_while_nobody_else_sends_prompts() -> None:
    window = ReleaseWindow(256, 256)

    assert [window.adjust(LATE, None, float(now)) for now in range(5)] == [256] * 5


def test_it_shrinks_while_late_and_grows_again_slowly() -> None:
    window = ReleaseWindow(256, 256)

    shrinking = sizes(window, LATE, 20)
    assert shrinking == sorted(shrinking, reverse=True)
    assert (shrinking[0], shrinking[-1]) == (179, LEAST)
    growing = sizes(window, PROMPT, 3, since=100.0)
    assert growing == [LEAST + 2, LEAST + 4, LEAST + 6]


def test_it_is_whole_again_once_they_have_stopped() -> None:
    window = ReleaseWindow(256, 256)
    sizes(window, LATE, 10)

    assert window.adjust(LATE, 5.0, 5.0 + OTHERS_S - 1) < 256
    assert window.adjust(LATE, 5.0, 5.0 + OTHERS_S + 1) == 256


def test_one_late_look_among_many_changes_nothing() -> None:
    window = ReleaseWindow(256, 100)
    for number in range(9):
        assert window.adjust(0.0, 0.0, number / 100) == 100

    assert window.adjust(5 * LATE_S, 1.0, ADJUST_EVERY_S) == 102


@pytest.mark.parametrize("most", [1, 4, 256])
def test_it_is_never_larger_than_configured_nor_none(most: int) -> None:
    window = ReleaseWindow(most, most)

    assert min(sizes(window, LATE, 30)) == min(most, LEAST)
    assert max(sizes(window, PROMPT, 300, since=100.0)) == most


def test_it_is_released_bit_by_bit_while_others_send_prompts() -> None:
    window = ReleaseWindow(256, 256)

    window.adjust(0.0, None, 1.0)
    assert window.at_once == 256
    window.adjust(0.0, 2.0, 2.0)
    assert window.at_once == 256 / SPREAD
    sizes(window, LATE, 20, since=3.0)
    assert (window.size, window.at_once) == (LEAST, 1)
    window.adjust(0.0, 3.0, 3.0 + 100 * OTHERS_S)
    assert window.at_once == 256
