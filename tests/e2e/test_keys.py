"""`fusewire keys`, and commands that need one."""

import json
import time

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
