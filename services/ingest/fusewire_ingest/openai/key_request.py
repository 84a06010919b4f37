"""Requests to OpenRouter's routes for keys. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from fusewire_ingest.admission.budgets import Period
from fusewire_ingest.admission.key_limits import KeyLimit
from fusewire_ingest.admission.keys import (
    DEFAULT_SCOPES,
    MOST_NAME,
    Scope,
    is_name,
    write_scopes,
)
from fusewire_ingest.admission.refusal import invalid_error, unsupported_error, validate

LimitReset = Literal["daily", "weekly", "monthly"]
PERIODS: Final[Mapping[LimitReset | None, Period]] = {
    "daily": "day",
    "monthly": "month",
    None: "total",
}
"""The periods of limits, by OpenRouter's names; those of weeks are not supported."""

Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _parse_time(value: object) -> object:
    """A time in ISO 8601, which pydantic's strict mode reads from JSON texts alone."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


class _KeyFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    limit: Usd | None = None
    limit_reset: LimitReset | None = None
    include_byok_in_limit: bool = False
    """Changes nothing: no key of a client pays for its calls."""
    workspace_id: str | None = None
    """The tenant; no other can be named."""


class CreateKey(_KeyFields):
    """The body of `POST /keys`."""

    name: str
    expires_at: Annotated[AwareDatetime | None, BeforeValidator(_parse_time)] = None
    scopes: list[Scope] = list(DEFAULT_SCOPES)
    """What the key may be used for; OpenRouter's keys have none."""
    creator_user_id: str | None = None
    external: dict[str, Any] | None = None

    @property
    def key_limit(self) -> KeyLimit | None:
        """The limit, if there is one."""
        return None if self.limit is None else KeyLimit(self.limit, PERIODS[self.limit_reset])


class ChangeKey(_KeyFields):
    """The body of `PATCH /keys/{hash}`. Fields that are absent stay as they are."""

    name: str | None = None
    disabled: bool | None = None

    @property
    def limit_period(self) -> Period | None:
        """The period of the limit; None if it stays as it is."""
        return PERIODS[self.limit_reset] if "limit_reset" in self.model_fields_set else None


def parse_create(body: Mapping[str, Any], tenant: str, now: datetime) -> CreateKey:
    """Parse a request for a new key. Raises RefusedError."""
    request = validate(CreateKey, body)
    _check(request, request.name, tenant)
    if request.expires_at is not None and request.expires_at <= now:
        raise invalid_error("expires_at", "it is over; give a time to come")
    if request.creator_user_id is not None or request.external is not None:
        path = "external" if request.external is not None else "creator_user_id"
        raise unsupported_error(path, "keys have no users here; remove it, or say it in `name`")
    try:
        write_scopes(request.scopes)
    except ValueError as exc:
        raise invalid_error("scopes", str(exc)) from None
    return request


def parse_update(body: Mapping[str, Any], tenant: str) -> ChangeKey:
    """Parse a request that changes a key. Raises RefusedError."""
    request = validate(ChangeKey, body)
    _check(request, request.name, tenant)
    return request


def _check(request: _KeyFields, name: str | None, tenant: str) -> None:
    if name is not None and not is_name(name):
        raise invalid_error("name", f"it must have 1 to {MOST_NAME} printable characters")
    if request.limit_reset == "weekly":
        raise unsupported_error(
            "limit_reset", "limits are by day, by month or in total; use daily, monthly or null"
        )
    if request.workspace_id not in (None, tenant):
        raise invalid_error("workspace_id", "it must be your tenant's name; remove it")
