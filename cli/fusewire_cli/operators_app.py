"""The commands for operators: NATS, database, keys, erasure. Declared for typer.

Each command imports what it needs when it runs, so that `--help` is quick.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fusewire_cli.options import FormatOption, JsonOption
from fusewire_cli.screen import RowFormat, clear_errors, fail

app = typer.Typer(rich_markup_mode=None)
topology_app = typer.Typer(help="Provision NATS.", no_args_is_help=True, rich_markup_mode=None)
db_app = typer.Typer(
    help="Migrate and maintain the database.", no_args_is_help=True, rich_markup_mode=None
)
keys_app = typer.Typer(
    help="Create, list, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode=None
)
dead_app = typer.Typer(
    help="Messages that no service could handle.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(topology_app, name="topology")
app.add_typer(db_app, name="db")
app.add_typer(keys_app, name="keys")
budget_app = typer.Typer(
    help="Show and limit what tenants, keys and pools spend.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dead_app, name="dead")
app.add_typer(budget_app, name="budget")


@topology_app.command("apply")
def topology_apply(json_: JsonOption = False) -> None:
    """Create and mend streams, durables and buckets.

    Idempotent; never narrows an operator's limits.
    """
    from fusewire_cli import admin

    with clear_errors():
        admin.topology_apply(as_json=json_)


SiteOption = Annotated[
    list[str] | None,
    typer.Option("--edge-site", metavar="NAME", help="An edge site; can be repeated."),
]
TenantOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tenant",
        metavar="NAME",
        help="A tenant that submits prompts over NATS; can be repeated.",
    ),
]


@topology_app.command("accounts")
def topology_accounts(
    edge_site: SiteOption = None,
    tenant: TenantOption = None,
    site: Annotated[
        str | None,
        typer.Option("--site", metavar="NAME", help="The users of a site's own server instead."),
    ] = None,
) -> None:
    """Print the accounts, users and permissions for nats-server to include."""
    from fusewire import accounts

    try:
        text = (
            accounts.render_site(site) if site else accounts.render(edge_site or [], tenant or [])
        )
    except ValueError as exc:
        fail(str(exc), "give --tenant and --edge-site other names")
    print(text, end="")


@topology_app.command("nkeys")
def topology_nkeys(
    folder: Annotated[Path, typer.Argument(help="A new folder for them.")],
    edge_site: SiteOption = None,
    tenant: TenantOption = None,
    add: Annotated[
        bool,
        typer.Option(
            "--add", help="The folder is there: make keys for users that have none in it."
        ),
    ] = False,
) -> None:
    """Make an nkey for each user of NATS: its seed, and `public.env` with all public keys."""
    from fusewire_cli import nkey_files

    with clear_errors():
        nkey_files.write(folder, edge_site or [], tenant or [], adds=add)


@db_app.command("upgrade")
def db_upgrade(
    allow_newer: Annotated[
        bool,
        typer.Option(
            "--allow-newer",
            help="Leave a newer schema as it is if this version may run on it, as in a rollback.",
        ),
    ] = False,
) -> None:
    """Bring the database to the schema of this version; idempotent."""
    from fusewire_cli import admin

    with clear_errors():
        admin.db_upgrade(allow_newer=allow_newer)


@db_app.command("analyst")
def db_analyst(
    name: Annotated[str, typer.Argument(help="The role's name, such as `analysts`.")],
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="Its password; else one is made."),
    ] = None,
    new_password: Annotated[
        bool, typer.Option("--new-password", help="Make another password for a role that exists.")
    ] = False,
) -> None:
    """Create a PostgreSQL role that may read the views and nothing else; print its address.

    Idempotent. Run it again after an upgrade that adds views.
    """
    from fusewire_cli import roles

    with clear_errors():
        roles.analyst(name, password_file, reset=new_password)


@db_app.command("sums")
def db_sums() -> None:
    """Make the sums by day anew, which the views of days, models and judges read.

    Each day is a transaction of its own; outcomes may be stored meanwhile.
    """
    from fusewire_cli import admin

    with clear_errors():
        admin.db_sums()


@dead_app.command("list")
def dead_list(form: FormatOption = RowFormat.table) -> None:
    """List the messages, and why each was given up."""
    from fusewire_cli import dead

    with clear_errors():
        dead.show(form)


@dead_app.command("show")
def dead_show(
    number: Annotated[int, typer.Argument(min=1, help="See `fusewire dead list`.")],
) -> None:
    """Print a message with its body, as JSON; it may hold a prompt."""
    from fusewire_cli import dead

    with clear_errors():
        dead.show_one(number)


@dead_app.command("replay")
def dead_replay(
    numbers: Annotated[list[int] | None, typer.Argument(help="See `fusewire dead list`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Publish messages again, once the cause of their failure is mended."""
    from fusewire_cli import dead

    with clear_errors():
        dead.replay(numbers or [], everything=everything)


ExpiryOption = Annotated[
    float | None,
    typer.Option("--expires-days", min=0.001, max=36_500, help="Days until it expires."),
]


@keys_app.command("create")
def keys_create(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant that the key is for.")],
    name: Annotated[
        str, typer.Option("--name", help="What the key is for, as the list will show it.")
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help="What it may be used for: submit, read, batch, or admin (all, and the tenant's "
            "keys); can be repeated. The default is submit, read and batch.",
        ),
    ] = None,
    expires_days: ExpiryOption = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, help="Its limit, per ingest.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens-per-minute", min=1, help="Its limit, per ingest.")
    ] = None,
    prompts_in_flight: Annotated[
        int | None, typer.Option("--prompts-in-flight", min=1, help="Its limit, per ingest.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make an API key. It is printed once, alone on stdout; only a hash of it is kept."""
    from fusewire_cli import keys

    limits = keys.KeyLimits(requests_per_minute, tokens_per_minute, prompts_in_flight)
    with clear_errors():
        keys.create(tenant, name, expires_days, scopes=scope or [], limits=limits, as_json=json_)


@keys_app.command("list")
def keys_list(form: FormatOption = RowFormat.table, json_: JsonOption = False) -> None:
    """List the keys, revoked and expired ones too; never the keys themselves."""
    from fusewire_cli import keys

    with clear_errors():
        keys.show(RowFormat.json if json_ else form)


@keys_app.command("rotate")
def keys_rotate(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="See `fusewire keys list`.")],
    keep_hours: Annotated[
        float,
        typer.Option(
            "--keep-hours", min=0, max=8_760, help="How long the replaced key still works."
        ),
    ] = 24,
    expires_days: ExpiryOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a key in place of another: same tenant, name, scopes, limits and budgets.

    It is printed once, alone on stdout. It expires after as many days as the other one had.
    """
    from fusewire_cli import keys

    with clear_errors():
        keys.rotate(key_id, expires_days, keep_hours=keep_hours, as_json=json_)


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="See `fusewire keys list`.")],
) -> None:
    """Revoke a key: every ingest refuses it within 5 seconds."""
    from fusewire_cli import keys

    with clear_errors():
        keys.revoke(key_id)


class BudgetPeriod(StrEnum):
    """When spending begins anew, UTC."""

    day = "day"
    month = "month"
    total = "total"


@budget_app.command("show")
def budget_show(
    account: Annotated[
        str | None, typer.Argument(help="A tenant, key:ID or pool:NAME; all if not given.")
    ] = None,
    form: FormatOption = RowFormat.table,
    json_: JsonOption = False,
) -> None:
    """Print limits, and what is spent and reserved in the current periods, USD."""
    from fusewire_cli import budget

    with clear_errors():
        budget.show(account, RowFormat.json if json_ else form)


@budget_app.command("set")
def budget_set(
    account: Annotated[str, typer.Argument(help="A tenant, key:ID or pool:NAME.")],
    period: Annotated[
        BudgetPeriod, typer.Option("--period", help="When spending begins anew (UTC).")
    ] = BudgetPeriod.month,
    usd: Annotated[
        float | None,
        typer.Option("--usd", min=0, help="Prompts that may cost more than is left are refused."),
    ] = None,
    soft_usd: Annotated[
        float | None,
        typer.Option("--soft-usd", min=0, help="Spending beyond it is reported once a period."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Remove the limit.")] = False,
) -> None:
    """Limit what an account may spend in each period.

    It wins over the configuration's limit of the same account and period. Spending counts from the
    account's first limit of that period.
    """
    from fusewire_cli import budget

    with clear_errors():
        budget.change(account, period.value, hard_usd=usd, soft_usd=soft_usd, is_removed=none)


@app.command()
def erase(
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Erase what this tenant has stored.")
    ] = None,
    custom_id: Annotated[
        str | None, typer.Option("--custom-id", help="Erase only this custom_id of the tenant.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Only the custom_id of this batch.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the erasures so far, and erase nothing.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Erase a tenant, or one prompt of it, from the database and from NATS.

    It cannot be undone. A report without content is kept. An erasure that was interrupted is gone
    on with when it is run again.
    """
    from fusewire_cli import erase as module

    with clear_errors():
        if list_:
            module.show(RowFormat.json if json_ else RowFormat.table)
        elif tenant is None:
            fail("whose content is to be erased?", "name it with --tenant")
        else:
            module.erase(tenant, custom_id, batch, is_sure=yes, as_json=json_)
