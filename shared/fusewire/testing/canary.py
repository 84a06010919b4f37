"""For tests: words that must not get out, and where they are found, however they are encoded.

A canary is of ASCII letters and digits: so it is the same in JSON, in a URL and in UTF-8.
"""

import base64
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

_COMPRESSED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
"""The beginnings of gzip and zlib."""
_MOST_SEARCHED = 8 * 1024 * 1024
"""Nothing is unpacked of longer data, in which anything looks packed."""
_MOST_PACKED = 64 * 1024
_MOST_INFLATED = 4 * 1024 * 1024
_LEAST_INFLATED = 16


def forms(canary: str) -> dict[str, bytes]:
    """What a canary looks like, by encoding: of base64 the part that its neighbours leave alone."""
    plain = canary.encode()
    shifts = (base64.b64encode(b"\0" * shift + plain)[shift and 4 : -4] for shift in range(3))
    return {
        "plain": plain,
        "reversed": plain[::-1],
        "UTF-16": canary.encode("utf-16-le"),
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
        **{f"base64 at {shift}": data for shift, data in enumerate(shifts)},
    }


def _inflate(data: bytes) -> Iterator[bytes]:
    """The beginning of each part of data that is compressed."""
    for match in _COMPRESSED.finditer(data) if len(data) <= _MOST_SEARCHED else ():
        start = match.start()
        part = data[start : start + _MOST_PACKED]
        try:
            inner = zlib.decompressobj(wbits=47).decompress(part, _MOST_INFLATED)
        except zlib.error:
            continue
        if len(inner) >= _LEAST_INFLATED:
            yield inner


def find(places: Mapping[str, Iterable[bytes]], canaries: Iterable[str]) -> set[tuple[str, str]]:
    """The places that hold a canary, each with the encoding."""
    patterns = list(chain.from_iterable(forms(canary).items() for canary in canaries))
    results = set()
    for place, chunks in places.items():
        for chunk in chunks:
            results |= {(place, form) for form in _all_matches(chunk, patterns)}
    return results


def _all_matches(data: bytes, patterns: Sequence[tuple[str, bytes]]) -> Iterator[str]:
    yield from _matches(data, patterns)
    for inner in _inflate(data):
        yield from (f"packed {form}" for form in _matches(inner, patterns))


def _matches(data: bytes, patterns: Sequence[tuple[str, bytes]]) -> Iterator[str]:
    return (form for form, pattern in patterns if pattern in data)


def memory_of(pid: int) -> Iterator[bytes]:
    """What a process of ours holds in memory; on Linux alone."""
    if sys.platform != "linux":
        return
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, rights, *_, name = line.split(maxsplit=5)
            if not rights.startswith("rw") or name.startswith("[v"):
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except OSError:
                continue
