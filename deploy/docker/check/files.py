"""What the file system of an image may hold."""

import struct
from itertools import product
from pathlib import Path

_FOLDERS = ("usr/bin", "usr/sbin", "usr/local/bin", "opt/fusewire/.venv/bin")
_PROGRAMS = (
    *("gcc*", "g++*", "cc", "c++", "clang*", "tcc", "rustc", "go", "*-linux-gnu-*"),
    *("as", "ld", "strip", "make", "git", "uv", "uvx", "pip", "pip3*"),
)
_LEFTOVERS = (
    *("root/.cache", "root/.bash_history", "root/.python_history", "build", "tmp/*"),
    *("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"),
    *("opt/fusewire/.venv/lib/python*/site-packages/pip", "usr/local/lib/python*/*-packages/pip"),
    *("usr/lib/python*/ensurepip", "usr/local/lib/python*/ensurepip"),
)
_UNCHECKED_HASH = 1
"""The flags in the head of bytecode that is valid whatever its source's time is (PEP 552)."""


def faults(root: Path) -> list[str]:
    """What is in an image's file system and must not be, or is not and must."""
    lines = []
    for pattern in (*map("/".join, product(_FOLDERS, _PROGRAMS)), *_LEFTOVERS):
        lines += [f"has {path.relative_to(root)}" for path in root.glob(pattern)]
    sources = sorted((root / "opt/fusewire/.venv/lib").rglob("*.py"))
    if not sources:
        lines.append("has no code in /opt/fusewire/.venv")
    stale = [source for source in sources if not _has_bytecode(source)]
    if stale:
        lines.append(f"{len(stale)} modules have no lasting bytecode, such as {stale[0].name}")
    return lines


def _has_bytecode(source: Path) -> bool:
    for file in (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc"):
        with file.open("rb") as stream:
            flags: int = struct.unpack("<4xI", stream.read(8))[0]
        return flags == _UNCHECKED_HASH
    return False
