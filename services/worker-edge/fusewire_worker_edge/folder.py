"""Model folders: their manifest, and whether they are safe to load.

A folder holds `model.onnx` and its external data, the tokenizer, a `genai_config.json`, and our
`manifest.json`, which lists every file with its hash. Loading a model runs a stranger's program on
a stranger's data, so no file is opened for that before `verify` has accepted the folder.

`python -m fusewire_worker_edge.folder FOLDER[=SHA256]…` verifies folders, whose manifest must have
that hash if one is given; it is what an init container runs.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusewire.errors import EXIT_BAD_INPUT

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"

_PULL_AGAIN = "delete the folder and pull or import the model again"

ToolCalls = Literal["hermes", "fenced"]
"""Names of dialects; see `fusewire_worker_edge.engine.dialects.BY_NAME`."""


class ModelFolderError(Exception):
    """A model folder cannot be used. Has the folder, the reason and how to mend it."""

    def __init__(self, folder: Path, what: str, mend: str = _PULL_AGAIN) -> None:
        self.folder = folder
        self.what = what
        self.mend = mend
        super().__init__(f"{folder}: {what}; {mend}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """The hash and the size in bytes that a file must have."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class ModelOrigin(_Part):
    """The file or folder that a model folder was made from."""

    name: str
    sha256: str


class GoldenAnswer(_Part):
    """The model's greedy answer to a message, on the machine that converted it."""

    message: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


class Fidelity(_Part):
    """How close the conversion is to a float32 computation with the source's weights."""

    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence over the tokens, in nats."""
    top1: float
    """Share of tokens with the same most probable next token."""


class Manifest(_Part):
    """The content of `manifest.json`."""

    format: Literal[1] = 1
    name: str
    source: ModelOrigin
    architecture: str
    quantisation: dict[str, int]
    """How many tensors of the source are of each type."""
    block_size: int
    context_length: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    end_tokens: tuple[int, ...] = Field(min_length=1)
    """The ids that end an answer."""
    tool_calls: ToolCalls | None = None
    """The dialect of its tool calls, if it differs from what its template teaches."""
    onnxruntime: str
    """The version that the golden answer was made with."""
    golden: GoldenAnswer
    fidelity: Fidelity | None = None
    """None for an adopted graph, as there are no weights of a source to compare with."""
    files: dict[str, FileEntry]
    """Every file of the folder, without the manifest itself."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class ListedFolder:
    """A folder listed by `list_models`: its manifest, or its problem."""

    path: Path
    manifest: Manifest | None
    problem: str | None


def _open_regular(folder: Path, name: str) -> int:
    """Open a file for reading, and check that it is a regular file without links to it.

    A link could be changed from outside the folder after the check.

    Returns:
        the file descriptor.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ModelFolderError(folder, f"'{name}' is missing") from None
    except OSError as exc:
        if (folder / name).is_symlink():
            raise ModelFolderError(
                folder, f"'{name}' is a symbolic link", "replace it by the file itself"
            ) from None
        raise ModelFolderError(
            folder, f"'{name}' cannot be read: {exc.strerror}", "mend its permissions"
        ) from None
    try:
        _check_regular(folder, name, os.fstat(descriptor))
    except ModelFolderError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(folder: Path, name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ModelFolderError(folder, f"'{name}' is not an ordinary file")
    if status.st_nlink != 1:
        raise ModelFolderError(
            folder, f"'{name}' has a second name (a hard link)", "replace it by a copy"
        )


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest, without looking at the other files.

    Raises:
        ModelFolderError: the folder or the manifest is missing or malformed.
    """
    if not folder.is_dir():
        raise ModelFolderError(folder, "there is no such folder", "pull or import the model first")
    if not os.path.lexists(folder / MANIFEST):
        mend = (
            "name a folder that `fusewire model pull` or `import` has made;"
            " `fusewire model list` shows them"
        )
        raise ModelFolderError(folder, f"it is no model folder: it holds no '{MANIFEST}'", mend)
    with os.fdopen(_open_regular(folder, MANIFEST), "rb") as file:
        raw = file.read()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFolderError(
            folder, f"'{MANIFEST}' is malformed: {where}: {first['msg']}"
        ) from None
    for name in manifest.files:
        if name in (MANIFEST, ".", "..") or name != Path(name).name:
            raise ModelFolderError(
                folder, f"'{MANIFEST}' names {name!r}, which is not a file of the folder"
            )
    return manifest


def hash_file(folder: Path, name: str) -> FileEntry:
    """Return the hash and the size of a regular file.

    Raises:
        ModelFolderError: it is missing, a link, or not a regular file.
    """
    with os.fdopen(_open_regular(folder, name), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, size=os.fstat(file.fileno()).st_size)


def _check_files(folder: Path, manifest: Manifest, unread: Collection[str]) -> None:
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    extra = sorted(present - manifest.files.keys())
    if extra:
        raise ModelFolderError(folder, f"'{extra[0]}' is not in the manifest", "move it elsewhere")
    if GRAPH not in manifest.files:
        raise ModelFolderError(folder, f"the manifest names no '{GRAPH}'")
    for name, expected in manifest.files.items():
        if name in unread:
            continue
        actual = hash_file(folder, name)
        if actual.size != expected.size:
            raise ModelFolderError(
                folder, f"'{name}' has {actual.size} bytes, the manifest says {expected.size}"
            )
        if actual.sha256 != expected.sha256:
            raise ModelFolderError(folder, f"'{name}' has another hash than the manifest says")


def verify(folder: Path, unread: Collection[str] = ()) -> Manifest:
    """Check everything that can be checked without running the model.

    Every file is a regular file without links, with the size and hash of the manifest. There are no
    other files, and the graph uses known operators and data inside the folder only.

    Args:
        folder: the model folder.
        unread: files that nobody is going to read, which are not checked.

    Returns:
        the folder's manifest.

    Raises:
        ModelFolderError: a check failed.
    """
    from fusewire_worker_edge import graph_check  # noqa: PLC0415 - onnx is slow to import

    manifest = read_manifest(folder)
    _check_files(folder, manifest, unread)
    for name in manifest.files:
        if name in unread or not name.endswith(".onnx"):
            continue
        graph = (folder / name).read_bytes()
        problem = graph_check.graph_problem(graph, manifest.files.keys())
        if problem:
            raise ModelFolderError(
                folder, f"'{name}' {problem}", "use a model from a source that you trust"
            )
    return manifest


def verify_pinned(folder: Path, manifest_sha256: str) -> Manifest:
    """Verify a folder whose manifest must have this hash, so that no other model takes its place.

    Raises:
        ModelFolderError: a check failed.
    """
    read_manifest(folder)
    actual = hash_file(folder, MANIFEST).sha256
    if actual != manifest_sha256:
        raise ModelFolderError(
            folder,
            f"'{MANIFEST}' has the hash {actual}, and {manifest_sha256} is expected",
            "put the expected model there, or expect this one",
        )
    return verify(folder)


def list_models(root: Path) -> list[ListedFolder]:
    """List the model folders directly under `root` by name. Reads manifests only, no weights."""
    if not root.is_dir():
        return []
    folders = []
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            folders.append(ListedFolder(path, read_manifest(path), None))
        except ModelFolderError as exc:
            folders.append(ListedFolder(path, None, exc.what))
    return folders


@contextmanager
def lock_folder(target: Path, purpose: str) -> Iterator[None]:
    """Hold the lock of a folder for a purpose. Waits while another process holds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.{purpose}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Build a folder in a temporary sibling, which is renamed to `target` if no error occurred.

    Yields:
        the temporary folder.

    Raises:
        ModelFolderError: `target` exists already.
    """
    with lock_folder(target, "build"):
        if target.exists():
            raise ModelFolderError(
                target, "there is something already", "delete it, or choose another name"
            )
        partial = target.parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            _sync(partial)
            partial.rename(target)
            _sync_path(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Write a folder and its files to the disk, so that a crash does not leave it half-written."""
    for path in folder.iterdir():
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str]) -> None:
    """Verify folders, each `FOLDER` or `FOLDER=SHA256`; exit with code 2 at the first fault."""
    if not arguments:
        sys.exit("name folders: python -m fusewire_worker_edge.folder FOLDER[=SHA256] …")
    for argument in arguments:
        path, has_hash, sha256 = argument.rpartition("=")
        try:
            manifest = verify_pinned(Path(path), sha256) if has_hash else verify(Path(argument))
        except ModelFolderError as exc:
            sys.stderr.write(f"fusewire: {exc.folder}: {exc.what}\nfusewire: {exc.mend}\n")
            sys.exit(EXIT_BAD_INPUT)
        sys.stdout.write(f"{argument}: {len(manifest.files)} files as in the manifest\n")


if __name__ == "__main__":
    main(sys.argv[1:])
