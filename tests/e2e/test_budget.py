"""`fusewire budget`: limits by command, and what is spent of them."""

import json

from fusewire.testing.command_line import Cli

TENANT = {"FUSEWIRE_TENANTS": json.dumps({"acme": {"budget_usd": 5.0, "budget_soft_usd": 4.0}})}


def test_limits_are_set_shown_and_removed(cli: Cli) -> None:
    cli = Cli(cli.folder, {**cli.env, **TENANT})
    assert cli.run("db", "upgrade").returncode == 0

    def shown(*arguments: str) -> list[tuple[str, float | None, float | None, str]]:
        result = cli.run("budget", "show", *arguments, "--json")
        assert result.returncode == 0, result.stderr
        return [
            (row["account"], row["limit_usd"], row["soft_usd"], row["source"])
            for row in json.loads(result.stdout)
        ]

    def change(*arguments: str) -> str:
        result = cli.run("budget", "set", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stderr

    assert shown() == [("acme", 5.0, 4.0, "configuration")]
    made = json.loads(
        cli.run("keys", "create", "--tenant", "acme", "--name", "mine", "--json").stdout
    )
    key = f"key:{made['key_id']}"
    assert "within 5 seconds" in change("acme", "--usd", "8")
    change(key, "--period", "day", "--usd", "0")
    change("pool:default", "--period", "total", "--soft-usd", "3")
    limits = [
        ("acme", 8.0, 4.0, "budget set"),
        (key, 0.0, None, "budget set"),
        ("pool:default", None, 3.0, "budget set"),
    ]
    assert shown() == limits
    assert shown(key) == limits[1:2]
    table = cli.run("budget", "show").stdout.splitlines()
    assert table[1].split()[:1] + table[1].split()[2:] == [
        "acme",
        "8.00",
        "4.00",
        "0.00",
        "0.00",
        "8.00",
        "budget",
        "set",
    ]

    change("acme", "--none")
    change(key, "--period", "day", "--none")
    assert shown() == [("acme", 5.0, 4.0, "configuration"), limits[2]]
    assert "nothing limits tenant 'other'" in cli.run("budget", "show", "other").stderr


def test_what_cannot_be_a_limit_is_refused(cli: Cli) -> None:
    assert cli.run("db", "upgrade").returncode == 0
    for arguments, what in (
        (("acme",), "give a limit, or none"),
        (("acme", "--usd", "1", "--none"), "give a limit, or none"),
        (("acme", "--usd", "inf"), "--usd inf is no amount of money"),
        (("acme", "--usd", "-1"), "--usd"),
        (("acme", "--usd", "1", "--soft-usd", "2"), "would be above the limit"),
        (("acme", "--none"), "no limit of tenant 'acme' by month is stored"),
        (("Acme", "--usd", "1"), "'Acme' is no account"),
        (("key:abc", "--usd", "1"), "there is no key 'abc'"),
        (("pool:abc", "--usd", "1"), "there is no pool 'abc'"),
    ):
        result = cli.run("budget", "set", *arguments)
        assert (result.returncode, what in result.stderr) == (2, True), result.stderr

    cli = Cli(
        cli.folder,
        {**cli.env, "FUSEWIRE_TENANTS": '{"acme": {"budget_usd": 1, "budget_soft_usd": 2}}'},
    )
    result = cli.run("budget", "show")
    assert (result.returncode, "budget_soft_usd" in result.stderr) == (2, True)
