"""The commands of `fusewire batch`, declared for typer.

Each command imports what it needs when it runs, so that `--help` is quick.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusewire_cli.screen import ProgressStyle, clear_errors

if TYPE_CHECKING:
    from fusewire_cli.batch.options import ResultFormat, RunOptions

app = typer.Typer(help="Run files of prompts.", no_args_is_help=True, rich_markup_mode=None)

WINDOW = r"([1-9]\d*)([hd])"
HOURS = {"h": 1, "d": 24}
MOST_HOURS = 168


class Priority(StrEnum):
    """The priority of a batch's prompts."""

    high = "high"
    normal = "normal"
    low = "low"


class OutputFormat(StrEnum):
    """The format of a line of results."""

    openai = "openai"
    outcome = "outcome"


class LineFilter(StrEnum):
    """Which failed lines are asked again."""

    retryable = "retryable"
    all = "all"


def usd(text: str) -> float:
    """Parse an amount: `20usd`, `$20` or `20`.

    >>> usd("$20")
    20.0
    """
    match = re.fullmatch(r"\$?(\d+(?:\.\d+)?)\s*(?:usd)?", text.strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter("give an amount such as 20usd")
    return float(match[1])


def window(text: str) -> str:
    """Check a time, such as `24h` or `7d`.

    >>> window("7D")
    '7d'
    """
    match = re.fullmatch(WINDOW, text.strip().lower())
    if match is None or int(match[1]) * HOURS[match[2]] > MOST_HOURS:
        raise typer.BadParameter("give 1h to 168h, or 1d to 7d")
    return match[0]


SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="JSONL: OpenAI's, Mistral's or Anthropic's batch lines, or bare ones with prompt or "
        "messages, also mixed. Or .csv or .parquet. - reads JSONL from stdin.",
    ),
]
BatchArgument = Annotated[str, typer.Argument(metavar="ID", help="The batch.")]
PromptColOption = Annotated[
    str | None,
    typer.Option("--prompt-col", help="The column of a table that holds the prompts; `prompt`."),
]
IdColOption = Annotated[
    str | None,
    typer.Option(
        "--id-col",
        help="The column that holds custom_ids; `custom_id`, where there is one. "
        "Rows count as lines, from 1.",
    ),
]
PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", help="The pool to ask, whatever model a line names; a bare line's own pool wins."
    ),
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", help="best-of, merge, debate or verify; a bare line's own mode wins."),
]
PriorityOption = Annotated[
    Priority | None,
    typer.Option("--priority", help="Which prompts go first; a batch is low by default."),
]
CostOption = Annotated[
    float | None,
    typer.Option(
        "--max-cost",
        parser=usd,
        metavar="USD",
        help="Stop when the batch has cost this much, such as 20usd.",
    ),
]
WindowOption = Annotated[
    str,
    typer.Option(
        "--completion-window", parser=window, metavar="TIME", help="When to give up: 1h to 7d."
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Another name makes another batch of the same file.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help="The file for results, continued if it holds some; - is stdout.",
    ),
]
OrderOption = Annotated[
    bool,
    typer.Option(
        "--ordered/--as-completed",
        help="Results in the order of the input, or in that of completion.",
    ),
]
FormOption = Annotated[
    OutputFormat,
    typer.Option("--output-format", help="OpenAI's batch output lines, or whole outcomes."),
]
ShowOption = Annotated[
    ProgressStyle,
    typer.Option(
        "--progress", help="On stderr; auto is a bar on a terminal, else a JSON line each 10 s."
    ),
]
ProcessesOption = Annotated[
    bool, typer.Option("--processes", help="As in `up`, if a Fusewire has to be started.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("run")
def run(
    source: SourceArgument,
    out: OutOption = None,
    prompt_col: PromptColOption = None,
    id_col: IdColOption = None,
    pool: PoolOption = None,
    mode: ModeOption = None,
    priority: PriorityOption = None,
    max_cost: CostOption = None,
    completion_window: WindowOption = "24h",
    name: NameOption = None,
    in_order: OrderOption = True,
    output_format: FormOption = OutputFormat.openai,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the file and print its cost and time; nothing is sent."
        ),
    ] = False,
    progress: ShowOption = ProgressStyle.auto,
    processes: ProcessesOption = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the dry run as JSON.")] = False,
) -> None:
    """Fuse a file of prompts; results go to stdout or OUT as they come.

    The whole file is checked before anything is sent. The same file with the same pool, mode
    and name is the same batch: run it again after an interruption and it goes on where it was;
    nothing is asked twice. Uses the Fusewire at $FUSEWIRE_URL (with $FUSEWIRE_API_KEY), else
    the one that runs here, else one of its own for as long as it takes. Ctrl-C waits for what
    is in flight; a second one does not.

    Exit codes: 0 all answered, 1 fault, 2 bad input or configuration, 3 some lines failed,
    4 budget stop, 5 what is stored is damaged or of a newer version, 130 interrupted.
    """
    with clear_errors():
        options = _run_options(
            source, prompt_col, id_col, pool, mode, priority, max_cost, completion_window, name
        )
        if dry_run:
            from fusewire_cli.batch import plan

            plan.show(options, as_json=json_)
        else:
            from fusewire_cli.batch import command

            shape = _shape(out, in_order, output_format)
            command.run(options, shape, show=progress, processes=processes)


@app.command("submit")
def submit(
    source: SourceArgument,
    prompt_col: PromptColOption = None,
    id_col: IdColOption = None,
    pool: PoolOption = None,
    mode: ModeOption = None,
    priority: PriorityOption = None,
    max_cost: CostOption = None,
    completion_window: WindowOption = "24h",
    name: NameOption = None,
) -> None:
    """Check a file, hand it to the Fusewire that runs, and print the batch's id. See `run`."""
    from fusewire_cli.batch import command

    with clear_errors():
        command.submit(
            _run_options(
                source, prompt_col, id_col, pool, mode, priority, max_cost, completion_window, name
            )
        )


@app.command("status")
def status(
    batch_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One batch; all without it.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print the state of a batch, or of all batches.

    Like the commands below, starts a Fusewire for the moment if none runs.
    """
    from fusewire_cli.batch import command

    with clear_errors():
        command.status(batch_id, as_json=json_)


@app.command("watch")
def watch(batch_id: BatchArgument, progress: ShowOption = ProgressStyle.auto) -> None:
    """Follow a batch to its end; Ctrl-C only stops watching. Exit codes are those of `run`."""
    from fusewire_cli.batch import command

    with clear_errors():
        command.watch(batch_id, show=progress)


@app.command("resume")
def resume(
    batch_id: BatchArgument,
    max_cost: CostOption = None,
    out: OutOption = None,
    in_order: OrderOption = True,
    output_format: FormOption = OutputFormat.openai,
    progress: ShowOption = ProgressStyle.auto,
    processes: ProcessesOption = False,
) -> None:
    """Go on with a stopped batch, and follow it to its end as `run` does.

    Without -o no results are written.
    """
    from fusewire_cli.batch import command

    with clear_errors():
        shape = _shape(out, in_order, output_format)
        command.resume(batch_id, shape, max_cost, show=progress, processes=processes)


@app.command("retry")
def retry(
    batch_id: BatchArgument,
    only: Annotated[
        LineFilter,
        typer.Option("--only", help="The failed lines that may do better, or all that failed."),
    ] = LineFilter.retryable,
    out: OutOption = None,
    in_order: OrderOption = True,
    output_format: FormOption = OutputFormat.openai,
    progress: ShowOption = ProgressStyle.auto,
    processes: ProcessesOption = False,
) -> None:
    """Ask a batch's failed lines again, as a batch of their own, and follow it as `run` does."""
    from fusewire_cli.batch import command

    with clear_errors():
        shape = _shape(out, in_order, output_format)
        command.retry(batch_id, shape, only.value, show=progress, processes=processes)


@app.command("cancel")
def cancel(
    batch_id: BatchArgument,
    drain: Annotated[
        bool, typer.Option("--drain", help="Let what is in flight come to its end.")
    ] = False,
) -> None:
    """Stop a batch. What has settled stays; `resume` goes on."""
    from fusewire_cli.batch import command

    with clear_errors():
        command.cancel(batch_id, drain=drain)


@app.command("results")
def results(
    batch_id: BatchArgument,
    out: OutOption = None,
    in_order: OrderOption = True,
    output_format: FormOption = OutputFormat.openai,
) -> None:
    """Write what has settled of a batch so far, to stdout or OUT."""
    from fusewire_cli.batch import command

    with clear_errors():
        command.results(batch_id, _shape(out, in_order, output_format))


def _run_options(
    source: Path,
    prompt_col: str | None,
    id_col: str | None,
    pool: str | None,
    mode: str | None,
    priority: Priority | None,
    max_cost: float | None,
    completion_window: str,
    name: str | None,
) -> "RunOptions":
    from fusewire_cli.batch.inputs import Columns
    from fusewire_cli.batch.options import RunOptions

    return RunOptions(
        source,
        Columns(prompt_col, id_col),
        pool=pool,
        mode=mode,
        priority=priority and priority.value,
        max_cost_usd=max_cost,
        completion_window=completion_window,
        name=name,
    )


def _shape(out: Path | None, in_order: bool, form: OutputFormat) -> "ResultFormat":
    from fusewire_cli.batch.options import ResultFormat

    return ResultFormat(out, "line" if in_order else "settled", form.value)
