"""`fusewire model`: pull, convert, check, measure and delete edge models."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from fusewire_cli.screen import RowFormat, fail, note, rows, show_stages


def pull(name: str, root: Path | None) -> Path:
    """Fetch a model and convert it. Returns its folder.

    Raises:
        SystemExit: that failed.
    """
    from fusewire_worker_edge import pull as module
    from fusewire_worker_edge.folder import ModelFolderError
    from fusewire_worker_edge.importers import ModelImportError

    try:
        with show_stages(name) as progress:
            return module.pull(name, root, progress)
    except (module.PullError, ModelImportError) as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)


def remove(name: str, root: Path | None) -> None:
    """Delete a model's folder, and an unfinished download of it."""
    from fusewire_worker_edge.folder import list_models, lock_folder
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    where = (root or DEFAULT_ROOT).expanduser()
    folders = {model.path.name: model.path for model in list_models(where)}
    download = where / f".{name}.download"
    if name not in folders and not download.is_dir():
        fail(f"there is no model '{name}' in {where}", f"there is {', '.join(folders) or 'none'}")
    with lock_folder(where / name, "pull"):
        if name in folders:
            shutil.rmtree(folders[name])
        shutil.rmtree(download, ignore_errors=True)


def import_(source: Path, folder: Path, block_size: int | None, bits: int | None) -> None:
    """Convert a GGUF file into a model folder, and print how faithful the folder is."""
    from fusewire_worker_edge.folder import ModelFolderError
    from fusewire_worker_edge.importers import ModelImportError
    from fusewire_worker_edge.importers.convert import import_model
    from fusewire_worker_edge.importers.source import ImportOptions

    if block_size not in (None, 32, 128):
        fail(f"--block-size is {block_size}", "give 32 or 128, or leave it out")
    if bits not in (None, 4, 8):
        fail(f"--bits is {bits}", "give 4 or 8, or leave it out")
    try:
        manifest = import_model(source, folder, note, ImportOptions(block_size, bits))
    except ModelImportError as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    quality = "taken as it is"
    if fidelity := manifest.fidelity:
        quality = (
            f"KL {fidelity.kl:.4f} and top-1 {fidelity.top1:.1%} over {fidelity.tokens} tokens"
        )
    print(f"{folder}: {manifest.size / 1e6:.0f} MB, {quality}")


def bench(folder: Path, source: Path | None, tokens: int, *, as_json: bool) -> None:
    """Measure a model folder on this machine, and print the figures."""
    from fusewire_worker_edge.folder import ModelFolderError
    from fusewire_worker_edge.importers import ModelImportError
    from fusewire_worker_edge.measure import measure, measure_loads

    try:
        figures = dataclasses.asdict(measure_loads(folder))
        figures = dataclasses.asdict(measure(folder, source, tokens=tokens)) | figures
    except ModelImportError as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    if as_json:
        print(json.dumps(figures))
        return
    records = []
    for name, figure in figures.items():
        if figure is not None:
            records.append([name, figure if isinstance(figure, int) else f"{figure:.4g}"])
    rows(["figure", "value"], records, RowFormat.table)


def verify(folder: Path) -> None:
    """Check every file of a model folder against its manifest."""
    from fusewire_worker_edge import folder as module

    try:
        manifest = module.verify(folder)
    except module.ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    print(f"{folder}: {len(manifest.files)} files as in the manifest")


def show(root: Path | None, form: RowFormat) -> None:
    """List the models on this machine, and those that can be pulled."""
    from fusewire_worker_edge.catalogue import CATALOGUE
    from fusewire_worker_edge.folder import list_models
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    models = list_models((root or DEFAULT_ROOT).expanduser())
    records: list[list[Any]] = []
    for model in models:
        size = model.manifest.size if model.manifest else 0
        name = model.path.name
        records.append([name, "here", _megabytes(size), str(model.path), model.problem or ""])
    pulled_names = {model.path.name for model in models}
    for name, entry in CATALOGUE.items():
        if name not in pulled_names:
            records.append([name, "to pull", _megabytes(entry.size), "", ""])
    rows(["name", "state", "mb", "path", "problem"], records, form)


def _megabytes(size: int) -> int | None:
    return round(size / 1e6) or None
