"""Options that several commands share."""

from typing import Annotated

import typer

from fusewire_cli.screen import RowFormat

PoolOption = Annotated[
    str | None, typer.Option("--pool", help="The pool to ask; the default is `default`.")
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", help="best-of, merge, debate or verify; the default is the pool's."),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="PERIOD",
        help="Back to 12h, 7d or 2w ago, or to 2026-11-01 or 2026-11-01T08:00 (UTC). Reports and "
        "exports take whole UTC days.",
    ),
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
