"""What was found of each model, remembered here and shared with other workers."""

import hashlib
from typing import Protocol

import nats.errors
import structlog
from nats.js.errors import Error as JetStreamError
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue
from pydantic import ValidationError

from fusewire.settings import RemoteModel
from fusewire_worker_remote.dialect import PLAIN, Dialect

log = structlog.get_logger(__name__)


class DialectStore(Protocol):
    """Where findings are kept."""

    def of(self, model: RemoteModel) -> Dialect:
        """What is known of a model."""
        ...

    async def learn(self, model: RemoteModel, found: Dialect) -> None:
        """Remember what was found."""
        ...


def key_of(model: RemoteModel) -> str:
    """Of a model at an address: two configured models that are the same share their findings."""
    parts = (model.provider, model.base_url.rstrip("/"), model.model)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class MemoryDialects:
    """Findings of this process alone."""

    def __init__(self) -> None:
        self._known: dict[str, Dialect] = {}

    def of(self, model: RemoteModel) -> Dialect:
        """See `Dialects.of`."""
        return self._known.get(key_of(model), PLAIN)

    async def learn(self, model: RemoteModel, found: Dialect) -> None:
        """See `Dialects.learn`."""
        self._known[key_of(model)] = found


class KvDialects(MemoryDialects):
    """Findings in a key-value bucket, read at the start. Losing one costs a refused call, so faults are only logged."""

    def __init__(self, kv: KeyValue) -> None:
        super().__init__()
        self._kv = kv

    async def load(self, models: list[RemoteModel]) -> None:
        """Read what other workers, and earlier ones, have found of these models."""
        for model in models:
            found = await self._stored(model)
            if found is not None:
                await super().learn(model, found)

    async def learn(self, model: RemoteModel, found: Dialect) -> None:
        """See `Dialects.learn`."""
        stored = await self._stored(model)
        merged = found.merged(stored) if stored is not None else found
        await super().learn(model, merged)
        try:
            await self._kv.put(key_of(model), merged.model_dump_json().encode())
        except (nats.errors.Error, JetStreamError, TimeoutError, OSError) as exc:
            log.warning("remote.dialect_not_stored", fault=type(exc).__name__)

    async def _stored(self, model: RemoteModel) -> Dialect | None:
        try:
            found = await self._kv.get(key_of(model))
            return Dialect.model_validate_json(found.value) if found.value else None
        except KeyNotFoundError:
            return None
        except (nats.errors.Error, JetStreamError, TimeoutError, OSError, ValidationError) as exc:
            log.warning("remote.dialect_not_read", fault=type(exc).__name__)
            return None
