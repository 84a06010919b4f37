"""`fusewire keys`, and commands that need one."""

import getpass
import json
import sqlite3
import time
from contextlib import closing

import pytest

from fusewire.testing.command_line import Cli, address


def test_a_key_opens_the_door_until_it_is_revoked(cli: Cli) -> None:
    folder, cli = cli.folder, Cli(cli.folder, {**cli.env, "FUSEWIRE_HTTP__KEYS": "required"})
    with cli.start("up") as process:
        address(cli, process)
        refused = cli.run("ask", "Why?")
        assert refused.returncode != 0
        assert "FUSEWIRE_API_KEY" in refused.stderr

        made = json.loads(
            cli.run("keys", "create", "--tenant", "acme", "--name", "mine", "--json").stdout
        )
        holder = Cli(folder, {**cli.env, "FUSEWIRE_API_KEY": made["key"]})
        assert holder.run("ask", "Why?").returncode == 0
        rows = json.loads(
            cli.run("query", "select tenant, status from v_outcome", "-f", "json").stdout
        )
        assert [row["tenant"] for row in rows] == ["acme"]

        listed = json.loads(cli.run("keys", "list", "--json").stdout)
        assert [(key["key_id"], key["tenant"], key["revoked_at"]) for key in listed] == [
            (made["key_id"], "acme", None)
        ]
        assert made["key"] not in json.dumps(listed)
        stored = b"".join(path.read_bytes() for path in (folder / ".fusewire").glob("fusewire.db*"))
        assert made["key_id"].encode() in stored
        assert made["key"].encode() not in stored

        assert cli.run("keys", "revoke", made["key_id"]).returncode == 0
        time.sleep(5)  # what is promised
        assert holder.run("ask", "Why not?").returncode != 0
    absent = cli.run("keys", "revoke", "00000000")
    assert (absent.returncode, "fusewire keys list" in absent.stderr) == (2, True)


def test_a_key_is_rotated_and_has_its_scopes(cli: Cli) -> None:
    folder, cli = cli.folder, Cli(cli.folder, {**cli.env, "FUSEWIRE_HTTP__KEYS": "required"})

    def made(*arguments: str) -> dict[str, str]:
        result = cli.run("keys", *arguments, "--json")
        assert result.returncode == 0, result
        row: dict[str, str] = json.loads(result.stdout)
        return row

    assert cli.run("db", "upgrade").returncode == 0
    first = made("create", "--tenant", "acme", "--name", "mine", "--scope", "submit")
    second = made("rotate", first["key_id"], "--keep-hours", "0")
    with cli.start("up") as process:
        address(cli, process)
        replaced = Cli(folder, {**cli.env, "FUSEWIRE_API_KEY": first["key"]}).run("ask", "Why?")
        holder = Cli(folder, {**cli.env, "FUSEWIRE_API_KEY": second["key"]})
        refused = holder.run("vote", "someone", "tie")
        unread = holder.run("batch", "status")
        assert "unknown, expired or revoked" in replaced.stderr
        assert "there is no outcome" in refused.stderr, "a vote needs the scope submit"
        assert "no scope 'batch'" in unread.stderr

    listed = {row["key_id"]: row for row in json.loads(cli.run("keys", "list", "--json").stdout)}
    assert {row["scopes"] for row in listed.values()} == {"submit"}
    assert listed[second["key_id"]]["replaces"] == first["key_id"]
    assert listed[second["key_id"]]["last_used_at"]
    assert listed[first["key_id"]]["expires_at"]
    again = cli.run("keys", "rotate", first["key_id"])
    assert (again.returncode, "is revoked or expired" in again.stderr) == (2, True)
    unknown = cli.run("keys", "create", "--tenant", "a", "--name", "n", "--scope", "sumbit")
    assert (unknown.returncode, "did you mean 'submit'?" in unknown.stderr) == (2, True)
    with closing(sqlite3.connect(folder / ".fusewire" / "fusewire.db")) as connection:
        events = connection.execute(
            "SELECT actor, action, target FROM audit_log WHERE action LIKE 'key.%' ORDER BY at"
        )
        operator = f"operator:{getpass.getuser()}"
        assert events.fetchall() == [
            (operator, "key.created", first["key_id"]),
            (operator, "key.rotated", first["key_id"]),
        ]


def test_beyond_this_machine_a_proxy_has_to_be_named(cli: Cli) -> None:
    open_cli = Cli(cli.folder, {**cli.env, "FUSEWIRE_HTTP__HOST": "0.0.0.0"})
    refused = open_cli.run("up")
    assert (refused.returncode, "there is no TLS" in refused.stderr) == (2, True)
    assert "fusewire up --behind-proxy" in refused.stderr


@pytest.mark.parametrize("options", [[], ["--processes"]], ids=["one process", "several"])
def test_behind_a_proxy_keys_are_required_even_on_this_machine(
    cli: Cli, options: list[str]
) -> None:
    with cli.start("up", "--behind-proxy", *options) as process:
        address(cli, process)
        refused = cli.run("ask", "Why?")
    assert refused.returncode != 0
    assert "send a key" in refused.stderr or "FUSEWIRE_API_KEY" in refused.stderr
