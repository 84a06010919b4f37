"""The commands for analysts of stored outcomes, declared for typer.

Each command imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from fusewire_cli.export import FileFormat
from fusewire_cli.options import JsonOption, JudgeOption, SinceOption, WindowOption
from fusewire_cli.screen import QueryFormat, clear_errors

app = typer.Typer(rich_markup_mode=None)


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
    since: SinceOption = None,
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
    since: SinceOption = None,
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
def ablate(
    pool: Annotated[str, typer.Argument(help="The pool whose members are left out in turn.")],
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Judge again what only a judge can tell. Judges are called, members are not.",
        ),
    ] = False,
    since: SinceOption = None,
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
def rejudge(
    batch: Annotated[
        str, typer.Option("--batch", help="The batch whose stored answers are judged again.")
    ],
    judge: JudgeOption = None,
    criteria: Annotated[
        str | None, typer.Option("--criteria", help="What the judge shall value.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="best-of, merge, debate or verify; else as it was.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="The pool whose judge and rules apply.")
    ] = None,
    json_: JsonOption = False,
    window: WindowOption = 32,
) -> None:
    """Judge a batch's stored answers again in another way, and say what changed.

    No member is called, except in debates, where members that are configured answer again.

    Exit codes: 0 judged, 1 fault, 2 bad input or nothing to do, 130 interrupted.
    """
    from fusewire_cli import rejudge as module

    with clear_errors():
        change = module.PolicyChange(judge=judge, criteria=criteria, mode=mode, pool=pool)
        module.rejudge(batch, change, as_json=json_, window=window)
