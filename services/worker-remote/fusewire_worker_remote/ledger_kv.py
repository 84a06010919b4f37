"""The ledger in a JetStream key-value bucket."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import nats.errors
from nats.js.errors import APIError, InvalidKeyError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from fusewire_worker_remote.ledger import ConflictError, LedgerEntry, LedgerUnavailable

BUCKET = "fw_calls"
LEAST_TTL_S = 60.0
_PAUSES_S = (0.1, 0.5, 2.0)
"""Waits before each further try: an election of a stream leader takes some seconds."""

T = TypeVar("T")


class KvLedger:
    """Entries in `fw_calls`, by the message's key. The server removes each when its TTL ends.

    The bucket has to allow direct gets, the only read that a worker's permissions grant. A
    direct get may be stale on a cluster; that is harmless, since no call is made before
    a write that checks the revision.
    """

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:
        """See `Ledger.get`."""
        try:
            row = await _retry(lambda: self._kv.get(key))
        except KeyNotFoundError:
            return None, 0
        if not row.value:  # what the server leaves behind when a key expires
            return None, row.revision or 0
        return LedgerEntry.decode(row.value), row.revision or 0

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:
        """See `Ledger.put`."""
        value = entry.encode()
        ttl_s = max(keep_s, LEAST_TTL_S)

        def write() -> Awaitable[int]:
            # nats-py's `update` takes no TTL; the method that it calls does.
            return self._kv._update(key, value, last=revision, msg_ttl=ttl_s)  # noqa: SLF001 - nats-py has no public way to give a time to live

        try:
            return await _retry(write)
        except KeyWrongLastSequenceError:
            raise ConflictError from None


async def _retry(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the server answers, after each of `_PAUSES_S` once more.

    So a write whose acknowledgement was lost may be made twice. The second then conflicts with
    the first, which the caller recognizes by the entry's owner.

    Raises:
        LedgerUnavailable: no try was answered, or the server refused the call.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return await call()
        except (KeyNotFoundError, KeyWrongLastSequenceError, InvalidKeyError):
            raise
        except (nats.errors.Error, TimeoutError, OSError) as exc:
            # Any other code is a refusal, which a repetition does not change.
            if pause is None or (isinstance(exc, APIError) and exc.code not in {None, 500, 503}):
                raise LedgerUnavailable(
                    f"the ledger does not answer: {type(exc).__name__}"
                ) from exc
            await asyncio.sleep(pause)
    raise AssertionError
