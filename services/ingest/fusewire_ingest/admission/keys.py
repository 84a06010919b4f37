"""API keys and their scopes: make, parse and digest them.

Pure; random bytes and pepper are arguments.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final, Literal, get_args

from fusewire_ingest.admission.refusal import unknown

Scope = Literal["submit", "read", "batch", "admin"]
"""What a key may be used for (docs/decisions/0055):

- `submit`: send prompts, cancel them, vote;
- `read`: prompts, outcomes, models, counts of votes, and what runs;
- `batch`: files and batches;
- `admin`: all of these, the keys of its tenant, the queues, and the metrics.
"""
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("submit", "read", "batch")
MOST_NAME = 128
"""The most characters of a key's name."""

PREFIX = "fw-"
"""Prefix of every key of Fusewire, which tells it from other services' keys and finds leaks."""
# Five bytes are eight characters of base32, without padding.
ID_BYTES = 5
SECRET_BYTES = 32
RANDOM_BYTES = ID_BYTES + SECRET_BYTES
_KEY = re.compile(r"fw-([0-9a-v]{8})-[A-Za-z0-9_-]{43}", re.ASCII)


def make(random: bytes) -> str:
    """Make a key: `fw-`, its id of 8 characters, `-`, and a secret of 256 bits in 43 characters.

    Args:
        random: RANDOM_BYTES bytes of the system's random source.
    """
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a key takes {RANDOM_BYTES} random bytes")
    # The id is typed in commands: lower case, and never a hyphen, which would begin an option.
    key_id = base64.b32hexencode(random[:ID_BYTES]).decode().lower()
    secret = base64.urlsafe_b64encode(random[ID_BYTES:]).decode().rstrip("=")
    return f"{PREFIX}{key_id}-{secret}"


def key_id(key: str) -> str | None:
    """The id of a key, which is not secret; None if the text is not a key."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def digest(key: str, pepper: bytes) -> str:
    """The HMAC-SHA256 of a key, in hex, which is stored in its place.

    A key of 256 random bits needs no slow hash (docs/decisions/0026).
    """
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def is_same(digest_a: str, digest_b: str) -> bool:
    """Whether two digests are equal, compared in constant time."""
    return hmac.compare_digest(digest_a.encode(), digest_b.encode())


def write_scopes(names: Iterable[str]) -> str:
    """The scopes as they are stored: in the order of SCOPES, with spaces between them.

    Raises:
        ValueError: there is none, or no scope of that name.

    >>> write_scopes(["batch", "submit", "batch"])
    'submit batch'
    """
    wanted_names = set(names)
    if wrong_names := sorted(wanted_names - set(SCOPES)):
        raise ValueError(unknown("scope", wrong_names[0], SCOPES))
    if not wanted_names:
        raise ValueError(f"a key needs a scope; known: {', '.join(SCOPES)}")
    return " ".join(scope for scope in SCOPES if scope in wanted_names)


def read_scopes(text: str) -> frozenset[Scope]:
    """What a key with stored scopes may be used for.

    >>> sorted(read_scopes("admin"))
    ['admin', 'batch', 'read', 'submit']
    """
    names = text.split()
    # Names that only newer code knows allow nothing here.
    return frozenset(scope for scope in SCOPES if scope in names or "admin" in names)


def is_name(text: str) -> bool:
    """Whether a text can be the name of a key."""
    return 0 < len(text) <= MOST_NAME and text.isprintable()
