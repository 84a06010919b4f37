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
