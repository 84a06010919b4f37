"""The PostgreSQL role that analysts' statements run as: it may read the views, and nothing else.

Views run with the rights of their owner, so the role needs none on tables.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from fusewire.errors import StartupError
from fusewire.store.engine import Store
from fusewire.store.views import VIEWS

SCRAM_ITERATIONS = 4096
STATEMENT_TIMEOUT_S = 300
_UNABLE = "42501"
"""SQLSTATE code: insufficient_privilege."""


@dataclass(frozen=True)
class RoleChange:
    """What became of the role: whether it is new, and whether it has a new password."""

    is_new: bool
    has_new_password: bool


def scram_verifier(password: str, salt: bytes) -> str:
    """What PostgreSQL stores of a password (RFC 5803), so that it is in no statement or log.

    The password is ASCII, which SASLprep leaves as it is.
    """
    key = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, SCRAM_ITERATIONS)

    def encode(data: bytes) -> str:
        return base64.b64encode(data).decode()

    client_key = hmac.digest(key, b"Client Key", "sha256")
    stored_key = encode(hashlib.sha256(client_key).digest())
    server_key = encode(hmac.digest(key, b"Server Key", "sha256"))
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{encode(salt)}${stored_key}:{server_key}"


async def grant(store: Store, name: str, verifier: str, *, is_reset: bool) -> RoleChange:
    """Create the role, or bring it up to date; idempotent. Takes no rights from anybody.

    Args:
        store: the database, connected as the owner of the views.
        name: the role's name, which is checked already to be a plain one.
        verifier: `scram_verifier` of the password for a new role.
        is_reset: whether a role that exists gets this password too.

    Raises:
        StartupError: views are missing, the role is somebody else's, or rights to make it are.
    """

    def change(connection: Connection) -> RoleChange:
        _check_views(connection)
        is_new = _check_role(connection, name)
        has_new_password = is_new or is_reset
        password = f" PASSWORD '{verifier}'" if has_new_password else ""
        _write_role(connection, name, f"{'CREATE' if is_new else 'ALTER'} ROLE", password)
        _grant_views(connection, name)
        _check_rights(connection, name)
        return RoleChange(is_new, has_new_password)

    async with store.write() as connection:
        return await connection.run_sync(change)


def _write_role(connection: Connection, name: str, verb: str, password: str) -> None:
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f'{verb} "{name}" LOGIN NOINHERIT{password}')
            for setting in _settings(connection):
                connection.exec_driver_sql(f'ALTER ROLE "{name}" SET {setting}')
    except DBAPIError as exc:
        if getattr(exc.orig, "sqlstate", None) != _UNABLE:
            raise
        raise StartupError(
            "the role of [database] url may not make or change this role",
            "let an administrator run `fusewire db analyst` with a url of their own, or"
            " ALTER ROLE … CREATEROLE first",
        ) from None


def _settings(connection: Connection) -> tuple[str, ...]:
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar()
    return (
        "default_transaction_read_only = on",
        f"statement_timeout = '{STATEMENT_TIMEOUT_S}s'",
        "idle_in_transaction_session_timeout = '60s'",
        f"search_path = {schema}",
    )


def _check_views(connection: Connection) -> None:
    """Refuse where a view is missing, or runs with the rights of whoever reads it."""
    rows = connection.execute(_VIEWS, {"names": [view.name for view in VIEWS]})
    invokers = {row.relname: row.is_invoker for row in rows}
    if missing := [view.name for view in VIEWS if view.name not in invokers]:
        raise StartupError(f"the view {missing[0]} is missing", "run `fusewire db upgrade`")
    if own := sorted(name for name, is_invoker in invokers.items() if is_invoker):
        raise StartupError(
            f"{own[0]} is a security_invoker view, which analysts cannot read without rights on"
            " tables",
            f"ALTER VIEW {own[0]} RESET (security_invoker)",
        )


def _check_role(connection: Connection, name: str) -> bool:
    """Whether the role is new. Refuses a role that is more than one for analysts."""
    role = connection.execute(_ROLE, {"name": name}).one_or_none()
    if role is None:
        return True
    if role.is_more:
        raise StartupError(
            f"the role {name} exists and may do more than analysts should", "choose another name"
        )
    return False


def _grant_views(connection: Connection, name: str) -> None:
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar()
    views = ", ".join(f"{schema}.{view.name}" for view in VIEWS)
    connection.exec_driver_sql(f'GRANT USAGE ON SCHEMA {schema} TO "{name}"')
    connection.exec_driver_sql(f'GRANT SELECT ON {views} TO "{name}"')


def _check_rights(connection: Connection, name: str) -> None:
    """Refuse where the role cannot read a view, or can read or change a table."""
    names = [view.name for view in VIEWS]
    rights: dict[str, Any] = {"name": name, "names": names}
    if unreadable := connection.execute(_UNREADABLE, rights).scalars().all():
        raise StartupError(
            f"the role {name} cannot be given {unreadable[0]}",
            "run this as the owner of the views, with [database] url",
        )
    if tables := connection.execute(_TABLES, rights).scalars().all():
        raise StartupError(
            f"everybody, or the role {name}, has rights on {', '.join(sorted(tables))}",
            "revoke them first: analysts may read the views alone",
        )


_SCHEMA = "c.relnamespace = current_schema()::regnamespace"
# ruff: noqa: S608 - the statements are put together from the condition above
_VIEWS = text(
    "SELECT c.relname, COALESCE((SELECT bool_or(option_value::boolean)"
    " FROM pg_options_to_table(c.reloptions) WHERE option_name = 'security_invoker'), FALSE)"
    f" AS is_invoker FROM pg_class c WHERE c.relkind = 'v' AND {_SCHEMA}"
    " AND c.relname = ANY(:names)"
)
_ROLE = text(
    "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
    " OR rolname = current_user"
    " OR EXISTS (SELECT 1 FROM pg_auth_members m WHERE m.member = r.oid)"
    " OR EXISTS (SELECT 1 FROM pg_shdepend d WHERE d.refobjid = r.oid AND d.deptype = 'o')"
    " AS is_more FROM pg_roles r WHERE rolname = :name"
)
_UNREADABLE = text(
    f"SELECT c.relname FROM pg_class c WHERE c.relkind = 'v' AND {_SCHEMA}"
    " AND c.relname = ANY(:names)"
    " AND NOT (has_table_privilege(:name, c.oid, 'SELECT')"
    " AND has_schema_privilege(:name, c.relnamespace, 'USAGE'))"
)
_TABLES = text(
    f"SELECT c.relname FROM pg_class c WHERE c.relkind IN ('r', 'p', 'm') AND {_SCHEMA}"
    " AND (has_table_privilege(:name, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
    " OR has_any_column_privilege(:name, c.oid, 'SELECT, INSERT, UPDATE'))"
)
