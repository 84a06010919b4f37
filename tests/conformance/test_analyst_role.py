"""The PostgreSQL role for analysts' statements."""

import base64
import re

import asyncpg
import pytest
from sqlalchemy import make_url, text

from fusewire.errors import StartupError
from fusewire.settings import Database
from fusewire.store.analyst import Analyst, role
from fusewire.store.engine import Store
from fusewire.store.views import VIEWS

VERIFIER = role.scram_verifier("password1234", b"0123456789abcdef")


@pytest.fixture
def name(postgres_database: Database) -> str:
    """A role's name of the test's own: roles belong to the whole server."""
    return f"role_{make_url(postgres_database.url).database}"


@pytest.fixture
async def owner(postgres_database: Database) -> Store:
    return Store(postgres_database)


async def run(store: Store, *statements: str) -> None:
    async with store.write() as connection:
        for sql in statements:
            await connection.execute(text(sql))


async def as_role(store: Store, name: str, sql: str) -> object:
    dsn = store.url.set(drivername="postgresql", username=name)
    connection = await asyncpg.connect(dsn.render_as_string(hide_password=False))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_the_verifier_is_the_server_s_own(owner: Store, name: str) -> None:
    await run(owner, f"CREATE ROLE {name} PASSWORD 'a longer password'")
    async with owner.read() as connection:
        query = text("SELECT rolpassword FROM pg_authid WHERE rolname = :name")
        stored = str((await connection.execute(query, {"name": name})).scalar())
    await owner.close()
    salt = re.fullmatch(r"SCRAM-SHA-256\$4096:([^$]+)\$.+", stored)
    assert salt is not None
    assert role.scram_verifier("a longer password", base64.b64decode(salt.group(1))) == stored


async def test_the_role_reads_each_view_and_no_table(owner: Store, name: str) -> None:
    change = await role.grant(owner, name, VERIFIER, is_reset=False)
    assert change == role.RoleChange(is_new=True, has_new_password=True)
    for view in VIEWS:
        assert await as_role(owner, name, f"SELECT count(*) FROM {view.name}") == 0
    for table in ("prompts", "outcomes", "api_keys", "alembic_version"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_role(owner, name, f"SELECT count(*) FROM {table}")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await as_role(owner, name, "CREATE TEMP TABLE t (a integer)")
    assert await as_role(owner, name, "SHOW statement_timeout") == "5min"
    await owner.close()


async def test_a_second_time_changes_nothing_and_grants_what_is_new(
    owner: Store, name: str
) -> None:
    await role.grant(owner, name, VERIFIER, is_reset=False)
    await run(owner, f"REVOKE SELECT ON v_vote FROM {name}")
    database = Database(
        url=owner.url.render_as_string(hide_password=False),
        analyst_url=owner.url.set(username=name).render_as_string(hide_password=False),
    )
    async with Analyst(database) as analyst:
        with pytest.raises(Exception, match="run `fusewire db analyst` again"):
            await analyst.fetch("SELECT * FROM v_vote")
        change = await role.grant(owner, name, VERIFIER, is_reset=False)
        assert change == role.RoleChange(is_new=False, has_new_password=False)
        assert await analyst.fetch("SELECT * FROM v_vote") == []
    change = await role.grant(owner, name, VERIFIER, is_reset=True)
    assert change.has_new_password
    await owner.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE ROLE {name} CREATEDB", "may do more than analysts should"),
        ("CREATE ROLE {name} IN ROLE pg_read_all_data", "may do more than analysts should"),
        ("CREATE ROLE {name}; CREATE TABLE t (); ALTER TABLE t OWNER TO {name}", "may do more"),
        ("CREATE ROLE {name}; GRANT SELECT ON prompts TO {name}", "has rights on prompts"),
        ("CREATE ROLE {name}; GRANT SELECT (body) ON prompts TO {name}", "has rights on prompts"),
        ("GRANT SELECT ON api_keys TO PUBLIC", "everybody, or the role"),
        ("ALTER VIEW v_vote SET (security_invoker = true)", "v_vote is a security_invoker view"),
        ("DROP VIEW v_vote", "the view v_vote is missing"),
    ],
)
async def test_what_would_let_the_role_do_more_is_refused(
    owner: Store, name: str, statement: str, message: str
) -> None:
    await run(owner, *statement.format(name=name).split(";"))
    with pytest.raises(StartupError, match=message):
        await role.grant(owner, name, VERIFIER, is_reset=False)
    await owner.close()


async def test_who_may_not_make_roles_is_told_so(owner: Store, name: str) -> None:
    await run(owner, f"CREATE ROLE owner_{name} LOGIN", f"GRANT ALL ON v_vote TO owner_{name}")
    url = owner.url.set(username=f"owner_{name}").render_as_string(hide_password=False)
    limited = Store(Database(url=url))
    with pytest.raises(StartupError, match="may not make or change this role"):
        await role.grant(limited, name, VERIFIER, is_reset=False)
    await limited.close()
    await owner.close()
