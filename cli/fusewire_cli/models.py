"""`fusewire model`."""

from pathlib import Path

from fusewire_cli.screen import Format, fail, note, rows


def pull(name: str, root: Path | None) -> None:
    """Fetch and convert."""
    from fusewire_worker_edge import pull as module
    from fusewire_worker_edge.folder import ModelFolderError

    try:
        folder = module.pull(name, root, note)
    except module.PullError as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    print(folder)


def import_(source: Path, folder: Path, block_size: int, bits: int | None) -> None:
    """Convert."""
    from fusewire_worker_edge.folder import ModelFolderError
    from fusewire_worker_edge.importers import ModelImportError
    from fusewire_worker_edge.importers.convert import import_gguf
    from fusewire_worker_edge.importers.gguf import ImportOptions

    if block_size not in (32, 128):
        fail(f"--block-size is {block_size}", "give 32 or 128")
    if bits not in (None, 4, 8):
        fail(f"--bits is {bits}", "give 4 or 8, or leave it out")
    try:
        manifest = import_gguf(source, folder, note, ImportOptions(block_size, bits))
    except ModelImportError as exc:
        fail(str(exc))
    except ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    found = manifest.fidelity
    fidelity = f"KL {found.kl:.4f} and top-1 {found.top1:.1%} over {found.tokens} tokens"
    print(f"{folder}: {manifest.size / 1e6:.0f} MB, {fidelity}")


def verify(folder: Path) -> None:
    """Check a folder."""
    from fusewire_worker_edge import folder as module

    try:
        manifest = module.verify(folder)
    except module.ModelFolderError as exc:
        fail(f"{exc.folder}: {exc.what}", exc.mend)
    print(f"{folder}: {len(manifest.files)} files as in the manifest")


def show(root: Path | None, form: Format) -> None:
    """List folders."""
    from fusewire_worker_edge.folder import list_models
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    found = list_models(root or DEFAULT_ROOT)
    rows(["name", "path", "problem"], [[m.path.name, str(m.path), m.problem or ""] for m in found], form)
