"""The `fusewire` command.

Each subcommand imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from fusewire_cli.batch.app import app as batch_app
from fusewire_cli.export import FileFormat
from fusewire_cli.report.app import app as report_app
from fusewire_cli.screen import QueryFormat, RowFormat, clear_errors, fail

app = typer.Typer(
    help="Self-hosted model fusion: prompts to a pool of models, a judge, one stored outcome.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
eval_app = typer.Typer(
    help="Measure on labelled prompts.", no_args_is_help=True, rich_markup_mode=None
)
model_app = typer.Typer(
    help="Get and check edge models.", no_args_is_help=True, rich_markup_mode=None
)
config_app = typer.Typer(
    help="Check the configuration.", no_args_is_help=True, rich_markup_mode=None
)
topology_app = typer.Typer(help="Provision NATS.", no_args_is_help=True, rich_markup_mode=None)
db_app = typer.Typer(
    help="Migrate and maintain the database.", no_args_is_help=True, rich_markup_mode=None
)
dead_app = typer.Typer(
    help="Messages that no service could handle.", no_args_is_help=True, rich_markup_mode=None
)
keys_app = typer.Typer(
    help="Create, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(batch_app, name="batch")
app.add_typer(eval_app, name="eval")
app.add_typer(model_app, name="model")
app.add_typer(config_app, name="config")
app.add_typer(topology_app, name="topology")
app.add_typer(db_app, name="db")
app.add_typer(keys_app, name="keys")
app.add_typer(report_app, name="report")
app.add_typer(dead_app, name="dead")

PoolOption = Annotated[
    str | None, typer.Option("--pool", help="The pool to ask; the default is `default`.")
]
ModeOption = Annotated[
    str | None, typer.Option("--mode", help="best-of, merge or debate; the default is the pool's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JudgeOption = Annotated[
    str | None,
    typer.Option("--judge", help="A configured model that judges in place of the pool's judge."),
]
WindowOption = Annotated[
    int, typer.Option("--window", min=1, max=1000, help="Prompts in flight at once.")
]
FormatOption = Annotated[RowFormat, typer.Option("--format", "-f", help="How to print rows.")]


@app.command()
def up(
    processes: Annotated[
        bool,
        typer.Option(
            "--processes",
            help="Run each service as a process of its own, and restart it if it dies.",
        ),
    ] = False,
) -> None:
    """Run broker, migrations and all services on this machine until Ctrl-C."""
    from fusewire_cli import serve

    with clear_errors():
        serve.up(processes=processes)


@app.command()
def demo(
    json_: JsonOption = False,
    small: Annotated[
        bool,
        typer.Option(
            "--small", envvar="SMALL", help="With a model of 98 MB alone, in place of 1.7 GB."
        ),
    ] = False,
) -> None:
    """Fuse a dozen prompts with small models on this machine, and show who was right.

    The prompts use all three modes.
    """
    from fusewire_cli import demo as module

    with clear_errors():
        module.demo(as_json=json_, is_small=small)


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    pool: PoolOption = None,
    mode: ModeOption = None,
    json_: JsonOption = False,
) -> None:
    """Fuse one prompt and print the answer.

    Uses the running stack, or starts one for the moment.
    """
    from fusewire_cli import ask as module

    with clear_errors():
        module.ask(prompt, pool=pool, mode=mode, as_json=json_)


@app.command()
def vote(
    outcome: Annotated[str, typer.Argument(metavar="OUTCOME", help="Its id, as in v_outcome.")],
    choice: Annotated[
        str,
        typer.Argument(
            metavar="CHOICE",
            help="The best answer: a member's name, fused (the outcome's own), tie, or none.",
        ),
    ],
    voter: Annotated[
        str | None,
        typer.Option(
            "--voter",
            help="Who votes, of several people here; only a hash of it is stored. "
            "The default is the API key.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Vote for the best answer of an outcome.

    Voting again changes the vote. Uses the running stack, or starts one for the moment.
    """
    from fusewire_cli import vote as module

    with clear_errors():
        module.vote(outcome, choice, voter, as_json=json_)


@eval_app.command("run")
def eval_run(
    suite: Annotated[
        Path,
        typer.Argument(
            metavar="SUITE.jsonl",
            help="One question a line: custom_id, prompt or messages, answer, "
            "match (exact, number, choice, json).",
        ),
    ],
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Answers given earlier, one a line: custom_id, model, content (or error_code), "
            "usage, latency_ms, cost_usd. No member is called.",
        ),
    ] = None,
    pool: PoolOption = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode", help="best-of, merge or debate; may be given again. The default is best-of."
        ),
    ] = None,
    judge: JudgeOption = None,
    json_: JsonOption = False,
    window: WindowOption = 32,
) -> None:
    """Measure whether a pool is right more often than its members, and at what cost.

    Each member is asked each labelled question once, and all fusions are made of those answers.
    Run again after an interruption, it goes on where it was; run again as it was, it asks
    nothing.

    Exit codes: 0 measured, 1 fault, 2 bad input, 130 interrupted.
    """
    from fusewire_cli.eval import command

    with clear_errors():
        command.run_suite(
            suite, replay, pool=pool, modes=mode, judge=judge, as_json=json_, window=window
        )


@app.command()
def rejudge(
    batch: Annotated[
        str, typer.Option("--batch", help="The batch whose stored answers are judged again.")
    ],
    judge: JudgeOption = None,
    criteria: Annotated[
        str | None, typer.Option("--criteria", help="What the judge shall value.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="best-of, merge or debate; else as it was.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="The pool whose judge and rules apply.")
    ] = None,
    json_: JsonOption = False,
    window: WindowOption = 32,
) -> None:
    """Judge a batch's stored answers again in another way, and say what changed.

    No member is called.

    Exit codes: 0 judged, 1 fault, 2 bad input or nothing to do, 130 interrupted.
    """
    from fusewire_cli import rejudge as module

    with clear_errors():
        change = module.PolicyChange(judge=judge, criteria=criteria, mode=mode, pool=pool)
        module.rejudge(batch, change, as_json=json_, window=window)


@app.command()
def ablate(
    pool: Annotated[str, typer.Argument(help="The pool whose members are left out in turn.")],
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Judge again what only a judge can tell. Judges are called, members are not.",
        ),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Outcomes of the last 12h, 28d, 4w, or since an ISO date."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest outcomes.")] = 5000,
    most_prompts: Annotated[
        int, typer.Option("--max-prompts", min=1, help="The newest prompts that are judged again.")
    ] = 200,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", help="Of this tenant; else of all, with --replay of `default`."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option("--batch", help="Of this batch; recorded answers count too, as in an eval."),
    ] = None,
    json_: JsonOption = False,
    window: WindowOption = 32,
) -> None:
    """Say what each member of a pool is worth, by leaving it out of stored outcomes.

    Votes are counted again exactly. What a judge decided is estimated from its stored verdicts, or
    judged again with --replay. Run again, --replay pays only for what is new.

    Exit codes: 0 measured, 1 fault, 2 bad input or no outcomes, 130 interrupted.
    """
    from fusewire_cli.ablate import command

    with clear_errors():
        command.run_ablate(
            pool,
            since,
            as_json=json_,
            limit=limit,
            replays=replay,
            most_prompts=most_prompts,
            tenant=tenant,
            batch=batch,
            window=window,
        )


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The model or pool in use.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one that may take its place.")],
    models: Annotated[bool, typer.Option("--models", help="The names are models.")] = False,
    pools: Annotated[bool, typer.Option("--pools", help="The names are pools.")] = False,
    pool: Annotated[
        str | None, typer.Option("--pool", help="Compare models on outcomes of this pool only.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="Count only this judge's verdicts on models.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="How far to look back: 7d, 12h, or a date.")
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            "--margin", min=0, max=100, help="Points of 100 prompts that may be lost for a price."
        ),
    ] = 3.0,
    budget_usd: Annotated[
        float | None,
        typer.Option("--budget-usd", min=0, help="The most that an accepted answer may cost."),
    ] = None,
    budget_ms: Annotated[
        float | None,
        typer.Option("--budget-ms", min=0, help="The most that 95 of 100 answers may take."),
    ] = None,
    json_: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page too, in one file."),
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option(
            "--fail-if",
            metavar="skip",
            help="End with 3 if the verdict is SHIP A, or more lenses say skip than ship.",
        ),
    ] = None,
) -> None:
    """Say which of two models or pools to ship, on the prompts that both had.

    SHIP B if B is not worse by the margin, and better, cheaper or faster beyond doubt; else SHIP A
    if that holds for A; else TOO CLOSE, with how many more prompts would tell.

    Exit codes: 0 compared, 1 fault, 2 bad input or nothing to compare, 3 skip (`--fail-if`).
    """
    from fusewire.analysis.compare import Rules
    from fusewire_cli.compare import command

    with clear_errors():
        command.run(
            a,
            b,
            command.select(models, pools, pool=pool, judge=judge, since=since),
            Rules(margin, budget_usd, budget_ms),
            command.Output(json_, html, fail_if),
        )


@app.command()
def query(
    sql: Annotated[
        str | None,
        typer.Argument(
            metavar="[SQL]",
            help="One SELECT on the views (`fusewire schema`); - reads it from stdin.",
        ),
    ] = None,
    form: Annotated[
        QueryFormat, typer.Option("--format", "-f", help="How to write the rows.")
    ] = QueryFormat.table,
    view: Annotated[
        str | None, typer.Option("--view", metavar="NAME", help="All of a view, in place of SQL.")
    ] = None,
    saved_name: Annotated[
        str | None, typer.Option("--saved", metavar="NAME", help="A saved query, in place of SQL.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="NAME", help="Keep the query in the data folder."),
    ] = None,
    list_saved: Annotated[
        bool, typer.Option("--list-saved", help="List the saved queries and what each answers.")
    ] = False,
    explain_view: Annotated[
        str | None,
        typer.Option("--explain-view", metavar="NAME", help="Print a view's meaning and its SQL."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="The value of `:name`; again for each."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write a file.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=86_400, help="Seconds it may take.")
    ] = 30.0,
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows",
            min=0,
            help="Rows at most, 0 for all; the default is 10,000 for a table, else 1,000,000.",
        ),
    ] = None,
    as_owner: Annotated[
        bool,
        typer.Option(
            "--as-owner",
            help="On PostgreSQL without [database] analyst_url: run it as the owner of the tables, "
            "whom a read-only transaction does not keep from everything.",
        ),
    ] = False,
) -> None:
    """Query stored outcomes, read-only: SELECTs on the views, and nothing else.

    Exit codes: 0 also where rows were cut, which stderr tells; 1 it took too long; 2 refused, or
    an error in it.
    """
    from fusewire_cli import query as module

    with clear_errors():
        if list_saved:
            module.list_saved(form)
            return
        if explain_view:
            module.explain_view(explain_view)
            return
        source = module.Source(sql, view, saved_name)
        request = module.Request(form, output, timeout, max_rows, as_owner, param or ())
        if save:
            module.save(save, source, request)
        else:
            module.run(source, request)


@app.command()
def schema(
    view: Annotated[str | None, typer.Argument(metavar="[VIEW]", help="One view alone.")] = None,
    json_: JsonOption = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Compare with what `--json` printed earlier: 1 if a view or column of it is gone "
            "or has another type.",
        ),
    ] = None,
) -> None:
    """Print the views that analysts query: columns, types, meanings.

    Exit codes: 0 printed, or only additions; 1 removed or changed; 2 bad input.
    """
    from fusewire_cli import schema as module

    with clear_errors():
        if check:
            module.check(check)
        else:
            module.show(view, as_json=json_)


@app.command()
def export(
    form: Annotated[FileFormat, typer.Argument(metavar="FORMAT", help="parquet, csv or jsonl.")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A new folder, or one of an earlier export.")
    ],
    view: Annotated[
        list[str] | None,
        typer.Option(
            "--view",
            help="May be given again. The default is v_outcome, v_answer, v_verdict, v_pair and "
            "v_vote.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="The first day: 2026-11-30, or 7d for seven days ago."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Write unchanged days too.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what the database has deleted since.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Write stored outcomes to a folder of files by day; run again, only what has changed.

    FOLDER/views.duckdb.sql makes the views known to DuckDB.

    Exit codes: 0 written, 1 fault, 2 bad input.
    """
    from fusewire_cli.export import command

    with clear_errors():
        options = command.options(view, since, full=full, prune=prune)
        command.export(form, folder, options, as_json=json_)


@app.command()
def trace(
    fusion: Annotated[str, typer.Argument(metavar="FUSION", help="Its id or custom_id.")],
    tenant: Annotated[
        str, typer.Option("--tenant", help="The tenant of the custom_id.")
    ] = "default",
    batch: Annotated[
        str | None, typer.Option("--batch", help="The batch of the custom_id.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show how a fusion came to its outcome.

    Prints who was asked when, what came back, and why it ended.
    """
    from fusewire_cli import trace as module

    with clear_errors():
        module.trace(fusion, tenant=tenant, batch=batch, as_json=json_)


@app.command()
def doctor(
    models: Annotated[
        bool, typer.Option("--models", help="Say too which parameters hosted models refuse.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check what Fusewire needs: configuration, NATS, database, models, keys, disk."""
    from fusewire_cli import doctor as module

    with clear_errors():
        module.doctor(as_json=json_, models=models)


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


@config_app.command("check")
def config_check(
    file: Annotated[
        Path | None, typer.Argument(help="The file; the default is the one that would be used.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Ask each hosted model one small question as member and as judge."
        ),
    ] = False,
) -> None:
    """Read the configuration and say what it means, or what is wrong with it.

    Exit codes: 0 usable, 2 not usable, 3 a model gave no answer (`--live`).
    """
    from fusewire_cli import config

    with clear_errors():
        config.check(file, live=live)


@topology_app.command("apply")
def topology_apply(json_: JsonOption = False) -> None:
    """Create and mend streams, durables and buckets.

    Idempotent; never narrows an operator's limits.
    """
    from fusewire_cli import admin

    with clear_errors():
        admin.topology_apply(as_json=json_)


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the schema of this version; idempotent."""
    from fusewire_cli import admin

    with clear_errors():
        admin.db_upgrade()


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


@keys_app.command("create")
def keys_create(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant that the key is for.")],
    name: Annotated[
        str, typer.Option("--name", help="What the key is for, as the list will show it.")
    ],
    expires_days: Annotated[
        float | None,
        typer.Option("--expires-days", min=0.001, max=36_500, help="Days until it expires."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make an API key. It is printed once, alone on stdout; only a hash of it is kept."""
    from fusewire_cli import keys

    with clear_errors():
        keys.create(tenant, name, expires_days, as_json=json_)


@keys_app.command("list")
def keys_list(form: FormatOption = RowFormat.table, json_: JsonOption = False) -> None:
    """List the keys, revoked and expired ones too; never the keys themselves."""
    from fusewire_cli import keys

    with clear_errors():
        keys.show(RowFormat.json if json_ else form)


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="See `fusewire keys list`.")],
) -> None:
    """Revoke a key: every ingest refuses it within 5 seconds."""
    from fusewire_cli import keys

    with clear_errors():
        keys.revoke(key_id)


@model_app.command("pull")
def model_pull(
    name: Annotated[str, typer.Argument(help="A name of the catalogue, such as smollm2-135m.")],
    root: Annotated[
        Path | None, typer.Option(help="Where models live; default ~/.cache/fusewire/models.")
    ] = None,
) -> None:
    """Fetch a model and convert it to an ONNX int4 folder."""
    from fusewire_cli import models

    with clear_errors():
        print(models.pull(name, root))


@model_app.command("import")
def model_import(
    source: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="The model folder to make.")],
    block_size: Annotated[
        int | None,
        typer.Option(
            help="32 keeps the file's own blocks; 128 is smaller and faster, and rounds anew. "
            "Without it 4 and 8 bits stay as they are and the rest is kept in 8 bits, in blocks "
            "of 128."
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="4 or 8, of what is rounded anew; without it floating point is kept, and 4 bits "
            "stay 4."
        ),
    ] = None,
) -> None:
    """Convert a GGUF file into a model folder, and measure how faithful the folder is."""
    from fusewire_cli import models

    with clear_errors():
        models.import_(source, folder, block_size, bits)


@model_app.command("verify")
def model_verify(folder: Annotated[Path, typer.Argument(help="A model folder.")]) -> None:
    """Check every file of a model folder against its manifest."""
    from fusewire_cli import models

    with clear_errors():
        models.verify(folder)


@model_app.command("bench")
def model_bench(
    folder: Annotated[Path, typer.Argument(help="A model folder.")],
    source: Annotated[
        Path | None,
        typer.Option(help="The GGUF file that it was made from: how near is the folder to it?"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Of the text that is compared.")] = 2048,
    json_: JsonOption = False,
) -> None:
    """Measure a model on this machine: speed, memory, and fidelity to its GGUF file."""
    from fusewire_cli import models

    with clear_errors():
        models.bench(folder, source, tokens, as_json=json_)


@model_app.command("rm")
def model_remove(
    name: Annotated[str, typer.Argument(help="A model of `fusewire model list`.")],
    root: Annotated[
        Path | None, typer.Option(help="Where models live; default ~/.cache/fusewire/models.")
    ] = None,
) -> None:
    """Delete a model from this machine, and its unfinished download."""
    from fusewire_cli import models

    with clear_errors():
        models.remove(name, root)


@model_app.command("list")
def model_list(
    root: Annotated[
        Path | None, typer.Option(help="Where models live; default ~/.cache/fusewire/models.")
    ] = None,
    form: FormatOption = RowFormat.table,
) -> None:
    """List the models on this machine, and those that can be pulled."""
    from fusewire_cli import models

    with clear_errors():
        models.show(root, form)


def run() -> None:
    """The console script."""
    app()
