"""Who is asking, and what they may."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from fusewire.errors import StartupError
from fusewire.service import is_loopback
from fusewire.settings import Http, Settings, Tenant
from fusewire_ingest.admission import keys
from fusewire_ingest.admission.rates import Rates
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Key

log = structlog.get_logger(__name__)

ANONYMOUS = "default"
"""The tenant of those who need no key."""
REMEMBERED_S = 3.0
"""How long a key that was looked up is not looked up again: it ends so much after its revocation at the latest."""
MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    tenant: str
    rule: Tenant
    key_id: str | None = None


class AccessError(Exception):
    """A caller that may not come in, or not now."""

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        super().__init__(message)


def needs_keys(http: Http) -> bool:
    """Whether the API asks for keys."""
    return http.keys == "required" or not is_loopback(http.host)


def check(http: Http) -> None:
    """Refuse to send keys and prompts over a network in the clear. Raises StartupError."""
    if not is_loopback(http.host) and http.tls_cert is None and not http.allow_insecure:
        raise StartupError(
            f"http.host is {http.host}, which others than this machine can reach, and there is no TLS:"
            " keys and prompts would cross the network in the clear",
            "set [http] tls_cert and tls_key; or allow_insecure = true where a proxy before it has TLS;"
            " or host = '127.0.0.1'",
        )


class Access:
    """Tells callers by their keys, and counts their requests."""

    def __init__(
        self,
        settings: Settings,
        stored: ApiKeys,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._stored = stored
        self._clock = clock
        self._monotonic = monotonic
        self._is_required = needs_keys(settings.http)
        self._pepper: bytes | None = None
        self._known: OrderedDict[str, tuple[Key | None, float]] = OrderedDict()
        self._rates = Rates()

    async def start(self) -> None:
        """Check that keys can be asked for where they have to be. Raises StartupError."""
        check(self._settings.http)
        if not self._is_required:
            return
        self._pepper = pepper(self._settings)
        if await self._stored.is_empty():
            log.warning("ingest.no_keys", mend="fusewire keys create --tenant NAME --name NAME")

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sent these headers (names in lower case).

        Raises:
            AccessError: there is no valid key and one is asked for, or there were too many requests.
            Transient: a key could not be looked up.
        """
        sent = _sent(headers)
        # SDKs always send a key, be it another service's.
        if sent is not None and (self._is_required or sent.startswith(keys.PREFIX)):
            found = await self._verified(sent)
            caller = Caller(found.tenant, self._settings.tenant(found.tenant), found.key_id)
        elif self._is_required:
            raise AccessError(
                401,
                "missing_api_key",
                "send a key of this Fusewire as 'Authorization: Bearer fw-…'",
            )
        else:
            caller = Caller(ANONYMOUS, self._settings.tenant(ANONYMOUS))
        self._count(caller)
        return caller

    async def _verified(self, sent: str) -> Key:
        key_id = keys.key_id(sent)
        found = await self._look_up(key_id) if key_id else None
        if found is not None:
            if self._pepper is None:
                self._pepper = pepper(self._settings)
            if keys.is_same(keys.digest(sent, self._pepper), found.hash) and found.is_valid(
                self._clock()
            ):
                return found
        # One answer for all of them: which ids exist is nobody's business.
        raise AccessError(
            401,
            "invalid_api_key",
            "the key is unknown, expired or revoked; ask the operator for one",
        )

    async def _look_up(self, key_id: str) -> Key | None:
        now = self._monotonic()
        if (held := self._known.get(key_id)) and now < held[1]:
            return held[0]
        found = await self._stored.get(key_id)
        self._known[key_id] = (found, now + REMEMBERED_S)
        self._known.move_to_end(key_id)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _count(self, caller: Caller) -> None:
        limit = caller.rule.requests_per_minute
        if limit is None:
            return
        wait_s = self._rates.take(caller.tenant, limit, self._monotonic())
        if wait_s:
            raise AccessError(
                429,
                "rate_limited",
                f"tenant '{caller.tenant}' may send {limit} requests a minute; wait {wait_s:.1f} s",
                retry_after_s=wait_s,
            )


def _sent(headers: Mapping[str, str]) -> str | None:
    """The key in the headers, if there is one."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip() or None
