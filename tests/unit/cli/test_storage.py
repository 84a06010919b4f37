"""How much of a disk the embedded broker takes, and what becomes of the streams' limits."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.errors import StartupError
from fusewire.topology import FULL_STORAGE_MB, LEAST_BYTES, topology
from fusewire_cli.local.storage import MIB, allowance_mb, measured_mb

GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("free_bytes", "stream_bytes", "expected"),
    [
        (256 * MIB, 0, 128),
        (GIB, 0, 512),
        (GIB - 1, 0, 256),
        (200 * MIB, 824 * MIB, 512),
        (28 * GIB, 0, 8192),
        (1000 * GIB, 0, FULL_STORAGE_MB),
    ],
)
def test_half_of_what_is_free_as_a_power_of_two(
    free_bytes: int, stream_bytes: int, expected: int
) -> None:
    assert allowance_mb(free_bytes, stream_bytes) == expected


def test_too_little_is_said_with_what_is_needed() -> None:
    with pytest.raises(
        StartupError, match="there are 100 MiB free; the embedded NATS server needs 256"
    ) as exc_info:
        allowance_mb(100 * MIB, 50 * MIB)
    assert "FUSEWIRE_DATA_DIR" in exc_info.value.mend


def test_a_folder_that_is_not_there_yet_is_measured(tmp_path: Path) -> None:
    assert measured_mb(tmp_path / "not" / "yet") >= 128


@given(st.integers(min_value=128, max_value=2 * FULL_STORAGE_MB))
def test_the_limits_keep_within_the_allowance_and_hold_some_messages(storage_mb: int) -> None:
    target = topology({"m": "edge"}, (), storage_mb=storage_mb)
    limits = [stream.max_bytes for stream in target.streams if stream.max_bytes]
    limits += [bucket.max_bytes for bucket in target.buckets]
    limits += [store.max_bytes for store in target.object_stores]

    assert sum(limits) <= storage_mb * MIB
    assert min(limits) >= LEAST_BYTES
    # The server refuses a limit here, and it holds schedules only.
    assert [stream.name for stream in target.streams if not stream.max_bytes] == ["FW_TIMER"]


def test_with_room_the_limits_are_the_full_ones() -> None:
    limits = {stream.name: stream.max_bytes for stream in topology({}, ()).streams}
    assert (limits["FW_PROMPT"], limits["FW_CANDIDATE"]) == (GIB, 4 * GIB)
