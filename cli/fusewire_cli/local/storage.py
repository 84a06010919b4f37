"""How much of this machine's disk the embedded broker may take."""

import shutil
from pathlib import Path

from fusewire.errors import StartupError
from fusewire.topology import FULL_STORAGE_MB

LEAST_MB = 128
"""Below this a stream holds too few messages to be of use."""
ROOM_MB = 64
"""What has to be free for a restart of the broker to be worth it."""
MIB = 1024**2


def allowance_mb(free: int, used: int) -> int:
    """MiB that all streams together may take: at most half of what is free or theirs already.

    A power of two up to the full size, so that a little more or less room changes nothing.

    Args:
        free: bytes free on the disk.
        used: bytes that the streams take already.

    Raises:
        StartupError: that is too little to work with.
    """
    half = (free + used) // 2 // MIB
    if half < LEAST_MB:
        raise StartupError(
            f"there are {free // MIB} MiB free; the embedded NATS server needs {2 * LEAST_MB}",
            "make room, or set FUSEWIRE_DATA_DIR to a folder on another disk",
        )
    return min(FULL_STORAGE_MB, 1 << (half.bit_length() - 1))


def measured_mb(folder: Path) -> int:
    """The allowance for a broker whose store is, or will be, this folder. Raises StartupError like `allowance_mb`."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return allowance_mb(shutil.disk_usage(there).free, used)


def has_room(folder: Path) -> bool:
    """Whether a broker whose store is this folder can store something."""
    return shutil.disk_usage(folder).free > ROOM_MB * MIB
