"""`fusewire model`."""

import dataclasses
import json
import shutil
from pathlib import Path

from fusewire_cli.screen import RowFormat, fail, note, rows, stages


def pull(name: str, root: Path | None) -> Path:
    """Fetch and convert; ends the command where that fails."""
    from fusewire_worker_edge import pull as module
    from fusewire_worker_edge.folder import ModelFolderError
    from fusewire_worker_edge.importers import ModelImportError

    try:
        with stages(name) as progress:
            return module.pull(name, root, progress)
    except (module.PullError, ModelImportError) as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)


def remove(name: str, root: Path | None) -> None:
    """Delete a model's folder, and what a pull of it left."""
    from fusewire_worker_edge.folder import list_models, lock_folder
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    where = (root or DEFAULT_ROOT).expanduser()
    known = {found.path.name: found.path for found in list_models(where)}
    left = where / f".{name}.download"
    if name not in known and not left.is_dir():
        fail(f"there is no model '{name}' in {where}", f"there is {', '.join(known) or 'none'}")
    with lock_folder(where / name, "pull"):
        for folder in (known.get(name), left):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=folder == left)


def import_(source: Path, folder: Path, block_size: int | None, bits: int | None) -> None:
    """Convert."""
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
    found = manifest.fidelity
    fidelity = (
        f"KL {found.kl:.4f} and top-1 {found.top1:.1%} over {found.tokens} tokens"
        if found
        else "taken as it is"
    )
    print(f"{folder}: {manifest.size / 1e6:.0f} MB, {fidelity}")


def bench(folder: Path, source: Path | None, tokens: int, *, as_json: bool) -> None:
    """Measure a folder."""
    from fusewire_worker_edge.folder import ModelFolderError
    from fusewire_worker_edge.importers import ModelImportError
    from fusewire_worker_edge.measure import measure

    try:
        found = dataclasses.asdict(measure(folder, source, tokens=tokens))
    except ModelImportError as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    if as_json:
        print(json.dumps(found))
    else:
        shown = [
            [name, value if isinstance(value, int) else f"{value:.4g}"]
            for name, value in found.items()
            if value
        ]
        rows(["figure", "value"], shown, RowFormat.table)


def verify(folder: Path) -> None:
    """Check a folder."""
    from fusewire_worker_edge import folder as module

    try:
        manifest = module.verify(folder)
    except module.ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    print(f"{folder}: {len(manifest.files)} files as in the manifest")


def show(root: Path | None, form: RowFormat) -> None:
    """List folders."""
    from fusewire_worker_edge.catalogue import CATALOGUE
    from fusewire_worker_edge.folder import list_models
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    found = list_models((root or DEFAULT_ROOT).expanduser())
    here = [
        [
            m.path.name,
            "here",
            _megabytes(m.manifest.size if m.manifest else 0),
            str(m.path),
            m.problem or "",
        ]
        for m in found
    ]
    names = {m.path.name for m in found}
    others = [
        [name, "to pull", _megabytes(entry.size), "", ""]
        for name, entry in CATALOGUE.items()
        if name not in names
    ]
    rows(["name", "state", "mb", "path", "problem"], [*here, *others], form)


def _megabytes(size: int) -> int | None:
    return round(size / 1e6) or None
