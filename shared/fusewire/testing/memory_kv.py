"""A JetStream key-value bucket in memory, for tests and benchmarks only."""

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue


class MemoryKeyValue(KeyValue):
    """The part of `nats.js.kv.KeyValue` that compare-and-set needs, with its errors."""

    def __init__(self) -> None:
        self._entries: dict[str, KeyValue.Entry] = {}
        self._revision = 0

    # The arguments that nobody passes here are nats-py's: the one who calls must not notice the
    # difference.

    async def get(
        self,
        key: str,
        revision: int | None = None,  # noqa: ARG002 - the signature is the protocol's
        validate_keys: bool = True,  # noqa: ARG002 - the signature is the protocol's
    ) -> KeyValue.Entry:
        """The latest value."""
        if key not in self._entries:
            raise KeyNotFoundError
        return self._entries[key]

    async def create(
        self,
        key: str,
        value: bytes,
        validate_keys: bool = True,  # noqa: ARG002 - the signature is the protocol's
        msg_ttl: float | None = None,  # noqa: ARG002 - the signature is the protocol's
    ) -> int:
        """Write a key that is not there."""
        return await self.update(key, value, last=0)

    async def update(
        self, key: str, value: bytes, last: int | None = None, validate_keys: bool = True
    ) -> int:
        """Write over revision `last`."""
        return await self._update(key, value, last, validate_keys)

    async def _update(
        self,
        key: str,
        value: bytes,
        last: int | None = None,
        validate_keys: bool = True,  # noqa: ARG002 - the signature is the protocol's
        msg_ttl: float | None = None,  # noqa: ARG002 - the signature is the protocol's
    ) -> int:
        current = self._entries.get(key)
        if (current.revision if current else 0) != (last or 0):
            raise KeyWrongLastSequenceError(description="wrong last sequence")
        self._revision += 1
        self._entries[key] = KeyValue.Entry("memory", key, value, self._revision, None, None, None)
        return self._revision
