"""API keys: how one is made, read and kept. Pure; the random bytes and the pepper are arguments."""

import base64
import hashlib
import hmac
import re

PREFIX = "fw-"
"""Begins every key of Fusewire, so that other services' keys are told apart, and leaks are found."""
ID_BYTES = 5
SECRET_BYTES = 32
RANDOM_BYTES = ID_BYTES + SECRET_BYTES
_KEY = re.compile(r"fw-([0-9a-v]{8})-[A-Za-z0-9_-]{43}", re.ASCII)


def make(random: bytes) -> str:
    """A key: `fw-`, its id of 8 characters, `-`, and a secret of 256 bits in 43 characters.

    Args:
        random: RANDOM_BYTES of them, from the system.
    """
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a key takes {RANDOM_BYTES} random bytes")
    # The id is typed in commands: lower case, and never a hyphen, which would begin an option.
    key_id = base64.b32hexencode(random[:ID_BYTES]).decode().lower()
    secret = base64.urlsafe_b64encode(random[ID_BYTES:]).decode().rstrip("=")
    return f"{PREFIX}{key_id}-{secret}"


def key_id(key: str) -> str | None:
    """The id of a key, which is no secret; None if it is not written as one."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def digest(key: str, pepper: bytes) -> str:
    """What is stored of a key: its HMAC-SHA256 in hex. A key of 256 random bits needs no slow hash."""
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def is_same(one: str, other: str) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())
