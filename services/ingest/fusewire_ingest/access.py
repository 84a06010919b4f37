"""Who is asking, and what they may."""

from collections.abc import Mapping
from dataclasses import dataclass

from fusewire.settings import Settings, Tenant

ANONYMOUS = "default"
"""The tenant of those who need no key."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    tenant: str
    rule: Tenant
    key_id: str | None = None


class AccessError(Exception):
    """A caller that may not come in, or not now."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Access:
    """Tells callers by their keys."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def caller(self, headers: Mapping[str, str]) -> Caller:  # noqa: ARG002
        """Who sent these headers (names in lower case)."""
        return Caller(ANONYMOUS, self._settings.tenant(ANONYMOUS))
