"""The `fusewire` command.

Each subcommand imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from fusewire_cli.analysts_app import app as analysts_app
from fusewire_cli.batch.app import app as batch_app
from fusewire_cli.models_app import app as model_app
from fusewire_cli.operators_app import app as operators_app
from fusewire_cli.options import JsonOption, JudgeOption, ModeOption, PoolOption, WindowOption
from fusewire_cli.report.app import app as report_app
from fusewire_cli.screen import clear_errors

app = typer.Typer(
    help="Self-hosted model fusion: prompts to a pool of models, a judge, one stored outcome.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
eval_app = typer.Typer(
    help="Measure on labelled prompts.", no_args_is_help=True, rich_markup_mode=None
)
config_app = typer.Typer(
    help="Check the configuration.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(batch_app, name="batch")
app.add_typer(eval_app, name="eval")
app.add_typer(model_app, name="model")
app.add_typer(config_app, name="config")
app.add_typer(report_app, name="report")
app.add_typer(analysts_app)
app.add_typer(operators_app)


@app.command()
def up(
    processes: Annotated[
        bool,
        typer.Option(
            "--processes",
            help="Run each service as a process of its own, and restart it if it dies.",
        ),
    ] = False,
    behind_proxy: Annotated[
        bool,
        typer.Option(
            "--behind-proxy",
            help="A proxy before it has TLS: listen without, as with [http] allow_insecure, and "
            "require API keys.",
        ),
    ] = False,
) -> None:
    """Run broker, migrations and all services on this machine until Ctrl-C."""
    from fusewire_cli import serve

    with clear_errors():
        serve.up(processes=processes, behind_proxy=behind_proxy)


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
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Check NATS and the database alone: where models and their keys are elsewhere.",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check what Fusewire needs: configuration, NATS, database, models, keys, disk."""
    from fusewire_cli import doctor as module

    with clear_errors():
        module.doctor(as_json=json_, models=models, shared=shared)


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
            "--mode",
            help="best-of, merge, debate or verify; may be given again. The default is best-of.",
        ),
    ] = None,
    judge: JudgeOption = None,
    route: Annotated[
        bool,
        typer.Option(
            "--route",
            help="Also fuse the answers of those alone that a learned route would ask, learned from"
            " the other folds: what it saves, and what it loses.",
        ),
    ] = False,
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
            suite,
            replay,
            pool=pool,
            modes=mode,
            judge=judge,
            as_json=json_,
            window=window,
            has_route=route,
        )


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


def run() -> None:
    """The console script."""
    app()
