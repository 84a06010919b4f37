"""Learned dialects of models, remembered here and shared with other workers."""

import hashlib
from functools import lru_cache
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
    """A store of learned dialects."""

    def of(self, model: RemoteModel) -> Dialect:
        """Return the dialect of a model; `PLAIN` where nothing was learned."""
        ...

    async def learn(self, model: RemoteModel, dialect: Dialect) -> None:
        """Remember the dialect of a model."""
        ...


def dialect_key(model: RemoteModel) -> str:
    """Return the key of a model at an address.

    Two configured models that have the same address and name there share their dialect.
    """
    return _hash("\n".join((model.provider, model.base_url.rstrip("/"), model.model)))


@lru_cache(maxsize=1024)
def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class MemoryDialects:
    """Dialects of this process alone."""

    def __init__(self) -> None:
        self._dialects: dict[str, Dialect] = {}

    def of(self, model: RemoteModel) -> Dialect:
        """See `DialectStore.of`."""
        return self._dialects.get(dialect_key(model), PLAIN)

    async def learn(self, model: RemoteModel, dialect: Dialect) -> None:
        """See `DialectStore.learn`."""
        self._dialects[dialect_key(model)] = dialect


class KvDialects(MemoryDialects):
    """Dialects in a key-value bucket, read at the start.

    Losing one costs a refused call, so faults are only logged.
    """

    def __init__(self, kv: KeyValue) -> None:
        super().__init__()
        self._kv = kv

    async def load(self, models: list[RemoteModel]) -> None:
        """Read what this worker and others have learned of these models."""
        for model in models:
            dialect = await self._fetch(model)
            if dialect is not None:
                await super().learn(model, dialect)

    async def learn(self, model: RemoteModel, dialect: Dialect) -> None:
        """See `DialectStore.learn`."""
        # Another worker may have learned something else meanwhile.
        stored_dialect = await self._fetch(model)
        if stored_dialect is not None:
            dialect = dialect.merge(stored_dialect)
        await super().learn(model, dialect)
        try:
            await self._kv.put(dialect_key(model), dialect.model_dump_json().encode())
        except (nats.errors.Error, JetStreamError, TimeoutError, OSError) as exc:
            log.warning("remote.dialect_not_stored", fault=type(exc).__name__)

    async def _fetch(self, model: RemoteModel) -> Dialect | None:
        try:
            row = await self._kv.get(dialect_key(model))
            return Dialect.model_validate_json(row.value) if row.value else None
        except KeyNotFoundError:
            return None
        except (nats.errors.Error, JetStreamError, TimeoutError, OSError, ValidationError) as exc:
            log.warning("remote.dialect_not_read", fault=type(exc).__name__)
            return None
