"""Deterministic ids. They are the dedupe keys of the whole pipeline.

The same (tenant, batch, custom_id) always names the same fusion, and the same
(fusion, round, call) the same task, so a message delivered twice, a client that
submits again and a sweep that republishes all find the existing row.
"""

import base64
import hashlib


def digest(*parts: str) -> bytes:
    """SHA-256 over the parts, each prefixed by its length so that no two lists collide."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        hasher.update(len(raw).to_bytes(8, "big"))
        hasher.update(raw)
    return hasher.digest()


def _short(raw: bytes) -> str:
    return base64.b32hexencode(raw)[:26].decode().lower()


def fusion_id(tenant: str, batch_id: str | None, custom_id: str) -> str:
    """The id of one fusion: 27 characters of [a-v0-9], 130 bits, safe in a subject."""
    return "f" + _short(digest("fusion", tenant, batch_id or "", custom_id))


def batch_id(tenant: str, name: str, pool: str, mode: str) -> str:
    """The id of a batch without a name of its own."""
    return "b" + _short(digest("batch", tenant, name, pool, mode))


def task_id(fusion: str, round_: int, call: str) -> str:
    """The id of one model call; also the key of the paid-call ledger."""
    return f"{fusion}-{round_}-{call}"


def seed(*parts: str) -> int:
    """A 31-bit seed derived from the parts (31 bits: every provider takes it)."""
    return int.from_bytes(digest("seed", *parts)[:4], "big") & 0x7FFF_FFFF
