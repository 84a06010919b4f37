"""OpenRouter's routes for managing keys: those of the caller's own tenant (docs/decisions/0055)."""

import contextlib
import functools
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire_ingest.access import INVALID_KEY, AccessError, Caller
from fusewire_ingest.admission import keys as admission
from fusewire_ingest.admission.budgets import Period
from fusewire_ingest.admission.key_limits import KeyLimit
from fusewire_ingest.admission.refusal import invalid_error
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import AdminCaller, Dependencies
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.openai import key_request
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import Change, Key, KeyStateError
from fusewire_ingest.repository.tenant_keys import (
    KeyAccessError,
    KeyChange,
    KeyLimitError,
    TenantKey,
    TenantKeys,
)

BODY_BYTES = 16 * 1024
PAGE = 100
MOST_OFFSET = 1_000_000
_RESETS = {period: reset for reset, period in key_request.PERIODS.items()}


def routes(dependencies: Dependencies) -> APIRouter:
    """`/keys`."""
    router = APIRouter(tags=["keys"])
    keys, clock = TenantKeys(dependencies.store), dependencies.clock

    @router.get(
        "/keys",
        summary="Your tenant's keys, the newest first",
        responses=schemas.reply("TenantKeyList"),
    )
    async def list_keys(
        caller: AdminCaller,
        offset: Annotated[int, Query(ge=0, le=MOST_OFFSET)] = 0,
        include_disabled: bool = False,
        include_expired: bool = False,
        workspace_id: Annotated[str | None, Query(max_length=63)] = None,
    ) -> Response:
        """At most 100; `offset` skips those that were listed before."""
        _manager_id(caller)
        states = {"revoked": include_disabled, "expired": include_expired}
        page: list[TenantKey] = []
        if workspace_id in (None, caller.tenant):
            page = await keys.page(
                caller.tenant,
                clock(),
                offset=offset,
                limit=PAGE,
                states=[state for state, is_included in states.items() if is_included],
            )
        reply: replies.openrouter.TenantKeyList = {
            "data": [_object(tenant_key, clock()) for tenant_key in page]
        }
        return JSONResponse(reply)

    @router.get("/keys/{key_id}", summary="One key", responses=schemas.reply("TenantKeyReply"))
    async def get(key_id: str, caller: AdminCaller) -> Response:
        _manager_id(caller)
        return await _reply(keys, caller.tenant, key_id, clock())

    _add_changes(router, dependencies, keys)
    return router


def _add_changes(router: APIRouter, dependencies: Dependencies, keys: TenantKeys) -> None:
    clock = dependencies.clock
    # Read at the first key that is made: without API keys, nothing needs it.
    load_pepper = functools.cache(lambda: pepper(dependencies.settings))

    @router.post(
        "/keys",
        summary="Make a key for your tenant",
        status_code=201,
        openapi_extra=schemas.body("NewKey"),
        responses=schemas.reply("CreateKeyReply", status=201),
    )
    async def create(request: Request, caller: AdminCaller) -> Response:
        """The key is in this reply and nowhere else. It may spend no more than the caller's."""
        manager_id, now = _manager_id(caller), clock()
        body = await bodies.json_object(request, BODY_BYTES)
        parsed_request = key_request.parse_create(body, caller.tenant, now)
        secret = admission.make(secrets.token_bytes(admission.RANDOM_BYTES))
        key_id = admission.key_id(secret)
        assert key_id is not None
        key = Key(
            key_id,
            caller.tenant,
            parsed_request.name,
            admission.digest(secret, load_pepper()),
            now,
            parsed_request.expires_at,
            scopes=admission.write_scopes(parsed_request.scopes),
        )
        with _clear_errors():
            await keys.add(key, parsed_request.key_limit, manager_id, _change(caller, now))
        tenant_key = await _find(keys, caller.tenant, key_id, now)
        reply: replies.openrouter.CreateKeyReply = {"data": _object(tenant_key, now), "key": secret}
        return JSONResponse(reply, 201)

    @router.patch(
        "/keys/{key_id}",
        summary="Change a key",
        openapi_extra=schemas.body("ChangedKey"),
        responses=schemas.reply("TenantKeyReply"),
    )
    async def change(request: Request, key_id: str, caller: AdminCaller) -> Response:
        """`disabled` revokes it for ever."""
        manager_id, now = _manager_id(caller), clock()
        body = await bodies.json_object(request, BODY_BYTES)
        parsed_request = key_request.parse_update(body, caller.tenant)
        key_change = KeyChange(
            parsed_request.name,
            parsed_request.disabled,
            parsed_request.limit,
            "limit" in parsed_request.model_fields_set,
            parsed_request.limit_period,
        )
        with _clear_errors():
            if not await keys.update(
                caller.tenant, _check_id(key_id), key_change, manager_id, _change(caller, now)
            ):
                raise _not_found_error(key_id)
        return await _reply(keys, caller.tenant, key_id, now)

    @router.delete(
        "/keys/{key_id}",
        summary="Revoke a key for ever",
        responses=schemas.reply("KeyDeletion"),
    )
    async def delete(key_id: str, caller: AdminCaller) -> Response:
        """Every ingest refuses it within 5 seconds. It stays in the list of disabled keys."""
        manager_id, now = _manager_id(caller), clock()
        revocation = KeyChange(is_revoked=True)
        with _clear_errors():
            if not await keys.update(
                caller.tenant, _check_id(key_id), revocation, manager_id, _change(caller, now)
            ):
                raise _not_found_error(key_id)
        reply: replies.openrouter.KeyDeletion = {"deleted": True}
        return JSONResponse(reply)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn what the database refuses into replies."""
    try:
        yield
    except KeyAccessError:
        raise AccessError(*INVALID_KEY) from None
    except KeyLimitError as exc:
        raise invalid_error("limit", str(exc)) from None
    except KeyStateError as exc:
        raise HttpError(409, "key_revoked", str(exc), is_final=True) from None


def _manager_id(caller: Caller) -> str:
    """The id of the caller's key. Where callers need no key, this needs one."""
    if caller.key_id is None:
        raise HttpError(
            401,
            "missing_api_key",
            "keys are managed with a key that has the scope 'admin': "
            "fusewire keys create --scope admin",
        )
    return caller.key_id


def _change(caller: Caller, now: datetime) -> Change:
    return Change(f"key:{caller.key_id}", now)


def _check_id(key_id: str) -> str:
    """The id. Raises HttpError for one with a NUL, which PostgreSQL cannot look up."""
    if "\x00" in key_id:
        raise _not_found_error(key_id)
    return key_id


async def _find(keys: TenantKeys, tenant: str, key_id: str, now: datetime) -> TenantKey:
    tenant_key = await keys.get(tenant, _check_id(key_id), now)
    if tenant_key is None:
        raise _not_found_error(key_id)
    return tenant_key


async def _reply(keys: TenantKeys, tenant: str, key_id: str, now: datetime) -> Response:
    tenant_key = await _find(keys, tenant, key_id, now)
    reply: replies.openrouter.TenantKeyReply = {"data": _object(tenant_key, now)}
    return JSONResponse(reply)


def _not_found_error(key_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no key '{key_id[:16]}'")


def _object(tenant_key: TenantKey, now: datetime) -> replies.openrouter.TenantKey:
    """OpenRouter's object."""
    key = tenant_key.key
    names = _names(now)
    limit, remaining_usd = _tightest(tenant_key, names)
    week_usd, month_usd = _usage(tenant_key, now)
    return {
        "hash": key.key_id,
        "name": key.name,
        "label": f"{admission.PREFIX}{key.key_id}-...",
        "disabled": key.revoked_at is not None,
        "scopes": key.scopes.split(),
        "limit": limit.usd if limit else None,
        "limit_remaining": remaining_usd,
        "limit_reset": _RESETS[limit.period] if limit else None,
        "include_byok_in_limit": False,
        "usage": tenant_key.spending.total_usd,
        "usage_daily": tenant_key.spending.spent_usd.get(names["day"], 0.0),
        "usage_weekly": week_usd,
        "usage_monthly": month_usd,
        "byok_usage": 0.0,
        "byok_usage_daily": 0.0,
        "byok_usage_weekly": 0.0,
        "byok_usage_monthly": 0.0,
        "created_at": key.created_at.isoformat(),
        "updated_at": None,
        "expires_at": _time(key.expires_at),
        "last_used_at": _time(key.last_used_at),
        "creator_user_id": None,
        "external_user": None,
        "workspace_id": key.tenant,
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _names(now: datetime) -> dict[Period, str]:
    """The names of the periods that a time is in."""
    today = now.astimezone(UTC).date()
    return {"day": today.isoformat(), "month": f"{today:%Y-%m}", "total": "total"}


def _tightest(
    tenant_key: TenantKey, names: Mapping[Period, str]
) -> tuple[KeyLimit | None, float | None]:
    """The limit of which the least is left, if there is one, and what is left of it, USD."""
    spending = tenant_key.spending
    remaining_usd = {
        limit: limit.usd
        - spending.spent_usd.get(names[limit.period], 0.0)
        - spending.reserved_usd.get(names[limit.period], 0.0)
        for limit in tenant_key.limits
    }
    if not remaining_usd:
        return None, None
    limit = min(remaining_usd, key=lambda limit: remaining_usd[limit])
    return limit, max(remaining_usd[limit], 0.0)


def _usage(tenant_key: TenantKey, now: datetime) -> tuple[float, float]:
    """USD spent in this week, which begins on Monday, and in this month."""
    spent_usd, today = tenant_key.spending.spent_usd, now.astimezone(UTC).date()
    monday, month = (today - timedelta(days=today.weekday())).isoformat(), f"{today:%Y-%m}"
    days = {name: usd for name, usd in spent_usd.items() if len(name) == len(monday)}
    days_of_month_usd = sum(usd for name, usd in days.items() if name.startswith(month))
    return (
        sum(usd for name, usd in days.items() if name >= monday),
        max(spent_usd.get(month, 0.0), days_of_month_usd),
    )
