"""The commands of `fusewire report`, declared for typer.

Each command imports what it needs when it runs, so that `--help` is quick.
"""

from enum import StrEnum
from typing import Annotated

import typer

from fusewire_cli.options import JsonOption, SinceOption
from fusewire_cli.screen import clear_errors

app = typer.Typer(
    help="Figures with their intervals from stored outcomes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class CostGroup(StrEnum):
    """What costs are grouped by."""

    pool = "pool"
    model = "model"
    day = "day"
    tenant = "tenant"


PoolOption = Annotated[str | None, typer.Option("--pool", help="Only this pool.")]
JudgeOption = Annotated[str | None, typer.Option("--judge", help="Only as this model judged.")]


@app.command()
def leaderboard(
    pool: PoolOption = None,
    judge: JudgeOption = None,
    since: SinceOption = None,
    vs: Annotated[
        str | None,
        typer.Option(
            "--vs", metavar="PERIOD", help="An earlier period, which ends where --since begins."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Rank the models of each pool, as each judge judged them.

    A strength is the odds of winning against a model of average strength (Bradley and Terry), from
    pairs that the judge compared in both orders or by margin, with ties as half and a bootstrap
    95 % interval. A dash stands for fewer than 30 pairs. Beside it: accuracy by labels, failures,
    cost per win, latency.

    Exit codes: 0 reported, also where there are no outcomes, 1 fault, 2 bad input.
    """
    from fusewire_cli.report import command

    with clear_errors():
        command.run_leaderboard(command.ReportOptions(pool, judge, since, vs, json_))


@app.command()
def judge(pool: PoolOption = None, judge_: JudgeOption = None, json_: JsonOption = False) -> None:
    """Check the judges: for bias by place, length and family, slips, and who agrees with them.

    Exit codes: 0 reported, also where there are no verdicts, 1 fault, 2 bad input.
    """
    from fusewire_cli.report import command

    with clear_errors():
        command.run_judge(command.ReportOptions(pool, judge_, as_json=json_))


@app.command()
def cost(
    by: Annotated[
        CostGroup, typer.Option("--by", help="What costs are grouped by.")
    ] = CostGroup.pool,
    pool: PoolOption = None,
    since: SinceOption = None,
    json_: JsonOption = False,
) -> None:
    """Add up costs: members and judge, hosted and edge, per outcome and per accepted answer.

    Outcomes whose cost is unknown are counted apart, and are in no sum.

    Exit codes: 0 reported, also where there are no outcomes, 1 fault, 2 bad input.
    """
    from fusewire.analysis.reports.cost import CostKey
    from fusewire_cli.report import command

    with clear_errors():
        options = command.ReportOptions(pool, since=since, as_json=json_)
        command.run_cost(options, CostKey(by.value))


@app.command()
def drift(
    since: SinceOption = "7d",
    vs: Annotated[
        str,
        typer.Option(
            "--vs", metavar="PERIOD", help="The earlier one, which ends where --since begins."
        ),
    ] = "28d",
    pool: PoolOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare a recent period with an earlier one: what differs, and did the configuration?

    Each difference has a 95 % interval.

    Exit codes: 0 reported, also where there are no outcomes, 1 fault, 2 bad input.
    """
    from fusewire_cli.report import command

    with clear_errors():
        command.run_drift(command.ReportOptions(pool, None, since, vs, json_))


@app.command()
def pool(pool_: PoolOption = None, json_: JsonOption = False) -> None:
    """Say what fusing gives over the best single model, and what each model adds.

    By labels and by votes of people.

    Exit codes: 0 reported, also where there are no outcomes, 1 fault, 2 bad input.
    """
    from fusewire_cli.report import command

    with clear_errors():
        command.run_pool(command.ReportOptions(pool_, as_json=json_))
