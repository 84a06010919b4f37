"""Who visits: the tenant and the scopes of an API key, which a cookie carries.

The key itself is in the cookie, which scripts cannot read and which is sent to this page alone. So
nothing is stored here, any replica serves any visitor, and a revoked key ends the visit
(docs/decisions/0058).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fusewire_console.api import Api, ApiError

COOKIE = "fusewire_key"
KEY = re.compile(r"fw-[A-Za-z0-9_-]{1,197}")
"""Whatever may be a key: others are not sent to the API, as a line end would be two headers."""


@dataclass(frozen=True)
class Visitor:
    """Who asks for a page."""

    tenant: str
    key: str | None
    """The API key; None where none is asked for."""
    key_id: str | None
    scopes: frozenset[str]
    is_operator: bool
    """Whether it may see what adds up all tenants."""


class SignInError(Exception):
    """There is no valid key; the visitor has to give one.

    Attributes:
        message: what is wrong with the key; empty if there is none.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class Access:
    """Asks the API whose key a visitor has.

    Args:
        api: the API.
        operators: tenants whose admins may see what adds up all tenants.
        is_required: whether a key is needed.
    """

    def __init__(self, api: Api, operators: Collection[str], *, is_required: bool) -> None:
        self._api = api
        self._operators = frozenset(operators)
        self.is_required = is_required

    async def visitor(self, key: str | None) -> Visitor:
        """Identify a visitor.

        Raises:
            SignInError: a key is needed, and this is none or no valid one.
            ApiError: the API does not answer.
        """
        if not self.is_required:
            return Visitor("default", None, None, frozenset({"admin", "read", "submit"}), True)
        if not key:
            raise SignInError("")
        if not KEY.fullmatch(key):
            raise SignInError("this is no key of a Fusewire, which begins with fw-")
        try:
            caller = await self._api.get(key, "/v1/caller")
        except ApiError as exc:
            if exc.status == 401:
                raise SignInError(exc.message) from None
            raise
        return self._visitor(key, caller)

    def _visitor(self, key: str, caller: dict[str, Any]) -> Visitor:
        scopes = frozenset(caller["scopes"])
        if "read" not in scopes:
            raise SignInError("this key has no scope 'read'; sign in with one that has")
        is_operator = "admin" in scopes and caller["tenant"] in self._operators
        return Visitor(caller["tenant"], key, caller["key_id"], scopes, is_operator)
