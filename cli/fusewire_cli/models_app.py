"""The commands of `fusewire model`, declared for typer.

Each command imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from fusewire_cli.options import FormatOption, JsonOption
from fusewire_cli.screen import RowFormat, clear_errors

app = typer.Typer(help="Get and check edge models.", no_args_is_help=True, rich_markup_mode=None)


@app.command("pull")
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


@app.command("import")
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


@app.command("verify")
def model_verify(folder: Annotated[Path, typer.Argument(help="A model folder.")]) -> None:
    """Check every file of a model folder against its manifest."""
    from fusewire_cli import models

    with clear_errors():
        models.verify(folder)


@app.command("bench")
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


@app.command("rm")
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


@app.command("list")
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
