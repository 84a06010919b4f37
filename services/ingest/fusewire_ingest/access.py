"""Authentication of callers by API key, and the counting of their requests."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from fusewire.http_server import check_encryption, needs_keys
from fusewire.settings import Settings, Tenant
from fusewire_ingest.admission import keys
from fusewire_ingest.admission.rates import UNLIMITED, Limits, RateLimit
from fusewire_ingest.key_usage import KeyUsage
from fusewire_ingest.pepper import pepper
from fusewire_ingest.rate_limits import RateLimits
from fusewire_ingest.repository.keys import ApiKeys, Key

log = structlog.get_logger(__name__)

ANONYMOUS = "default"
"""The tenant of callers that need no key."""
REMEMBERED_S = 3.0
"""How long a looked-up key is cached; a revoked key may be accepted for so long
(docs/decisions/0026)."""
INVALID_KEY = (
    401,
    "invalid_api_key",
    "the key is unknown, expired or revoked; ask the operator for one",
)
"""The error of a key that is not valid. It is the same in all cases: a caller must not learn which
ids exist."""
MOST_REMEMBERED = 10_000
"""The most keys in the cache."""


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    tenant: str
    rule: Tenant
    key_id: str | None = None
    first_key_id: str | None = None
    """The id of the first of the keys that were made in place of each other up to this one."""
    scopes: frozenset[keys.Scope] = frozenset(keys.SCOPES)
    key_limit: RateLimit = UNLIMITED
    """The limit of its key alone."""

    @property
    def limits(self) -> Limits:
        """Its rate limits, by what they are called in messages."""
        rule = self.rule
        limits = {
            f"tenant '{self.tenant}'": RateLimit(
                rule.requests_per_minute, rule.tokens_per_minute, rule.prompts_in_flight
            )
        }
        if self.key_id is not None:
            limits[f"key '{self.key_id}'"] = self.key_limit
        return limits


class AccessError(Exception):
    """A caller that is not let in."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)


class Access:
    """Identifies callers by their API keys."""

    def __init__(
        self,
        settings: Settings,
        api_keys: ApiKeys,
        rate_limits: RateLimits,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._api_keys = api_keys
        self._rate_limits = rate_limits
        self._clock = clock
        self._monotonic = monotonic
        self._is_required = needs_keys(settings.http)
        self._pepper: bytes | None = None
        self._cache: OrderedDict[str, tuple[Key | None, float]] = OrderedDict()
        """By key id: the key, or None if there is none, and until when (monotonic) it is cached."""
        self._key_usage = KeyUsage(api_keys, clock)

    async def start(self) -> None:
        """Check the HTTP settings and load the pepper if keys are required. Raises StartupError."""
        check_encryption(self._settings.http)
        self._key_usage.start()
        if not self._is_required:
            return
        self._pepper = pepper(self._settings)
        if await self._api_keys.is_empty():
            log.warning("ingest.no_keys", mend="fusewire keys create --tenant NAME --name NAME")

    async def stop(self) -> None:
        """Write the last uses of keys."""
        await self._key_usage.stop()

    def faults(self) -> list[str]:
        """See Service."""
        return self._key_usage.faults()

    async def caller(self, headers: Mapping[str, str], scope: keys.Scope | None) -> Caller:
        """Identify the sender of these headers (names in lower case), and count the request.

        Args:
            headers: the request's.
            scope: what the request needs; None if any valid key will do.

        Raises:
            AccessError: a valid key is required and missing, or lacks the scope.
            RateLimitError: there were too many requests.
            Transient: a key could not be looked up.
        """
        key_text = _key_in(headers)
        # SDKs always send a key, possibly one of another service.
        if key_text is not None and (self._is_required or key_text.startswith(keys.PREFIX)):
            key = await self._verify(key_text)
            self._key_usage.note(key.key_id)
            caller = Caller(
                key.tenant,
                self._settings.tenant(key.tenant),
                key.key_id,
                first_key_id=key.first_key_id or key.key_id,
                scopes=keys.read_scopes(key.scopes),
                key_limit=_key_limit(key),
            )
        elif self._is_required:
            raise AccessError(
                401,
                "missing_api_key",
                "send a key of this Fusewire as 'Authorization: Bearer fw-…'",
            )
        else:
            caller = Caller(ANONYMOUS, self._settings.tenant(ANONYMOUS))
        _check_scope(caller, scope)
        self._rate_limits.count_request(caller.limits)
        return caller

    async def _verify(self, key_text: str) -> Key:
        key_id = keys.key_id(key_text)
        key = await self._look_up(key_id) if key_id else None
        if key is not None:
            if self._pepper is None:
                self._pepper = pepper(self._settings)
            is_same = keys.is_same(keys.digest(key_text, self._pepper), key.hash)
            if is_same and key.is_valid(self._clock()):
                return key
        raise AccessError(*INVALID_KEY)

    async def _look_up(self, key_id: str) -> Key | None:
        now = self._monotonic()
        if key_id in self._cache:
            cached_key, cached_until = self._cache[key_id]
            if now < cached_until:
                return cached_key
        key = await self._api_keys.get(key_id)
        self._cache[key_id] = (key, now + REMEMBERED_S)
        self._cache.move_to_end(key_id)
        if len(self._cache) > MOST_REMEMBERED:
            self._cache.popitem(last=False)
        return key


def _key_limit(key: Key) -> RateLimit:
    return RateLimit(key.requests_per_minute, key.tokens_per_minute, key.prompts_in_flight)


def _check_scope(caller: Caller, scope: keys.Scope | None) -> None:
    if scope is not None and scope not in caller.scopes:
        raise AccessError(
            403,
            "missing_scope",
            f"the key '{caller.key_id}' has no scope '{scope}'; ask the operator for one that has"
            f" (fusewire keys create --scope {scope})",
        )


def _key_in(headers: Mapping[str, str]) -> str | None:
    """The key in the headers, if there is one: a bearer token, else `x-api-key`."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip() or None
