"""How much of this machine's disk the embedded broker may take."""

import shutil
from pathlib import Path

from fusewire.errors import StartupError
from fusewire.topology import FULL_STORAGE_MB

LEAST_MB = 128
"""The least that is of use, MiB: with less, streams hold too few messages."""
ROOM_MB = 64
"""What has to be free before the broker is restarted, MiB."""
MIB = 1024**2


def allowance_mb(free_bytes: int, stream_bytes: int) -> int:
    """MiB that all streams together may take: at most half of what is free or theirs already.

    A power of two up to the full size, so that a little more or less room changes nothing
    (docs/decisions/0033).

    Args:
        free_bytes: free on the disk.
        stream_bytes: taken by the streams already.

    Raises:
        StartupError: that is too little to work with.
    """
    half = (free_bytes + stream_bytes) // 2 // MIB
    if half < LEAST_MB:
        raise StartupError(
            f"there are {free_bytes // MIB} MiB free; "
            f"the embedded NATS server needs {2 * LEAST_MB}",
            "make room, or set FUSEWIRE_DATA_DIR to a folder on another disk",
        )
    return min(FULL_STORAGE_MB, 1 << (half.bit_length() - 1))


def measured_mb(folder: Path) -> int:
    """The allowance of a broker that has, or will have, its store in this folder.

    Raises:
        StartupError: there is too little room.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    stream_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return allowance_mb(shutil.disk_usage(existing).free, stream_bytes)


def has_room(folder: Path) -> bool:
    """Whether there is room for a broker that has its store in this folder."""
    return shutil.disk_usage(folder).free > ROOM_MB * MIB
