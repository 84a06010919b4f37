"""Model folders: what is in them, and whether they may be loaded.

A folder holds `model.onnx` and its external data, the tokenizer, a `genai_config.json`, and a
`manifest.json` of ours that names every file with its hash. Loading a model is running somebody's
program with somebody's data, so nothing is opened before `verify` has passed it.
"""

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST = "manifest.json"
GRAPH = "model.onnx"

_PULL_AGAIN = "delete the folder and pull or import the model again"


ToolCalls = Literal["hermes", "fenced"]


class ModelFolderError(Exception):
    """A model folder that cannot be used: where, why, and how to mend it."""

    def __init__(self, folder: Path, what: str, mend: str = _PULL_AGAIN) -> None:
        self.folder = folder
        self.what = what
        self.mend = mend
        super().__init__(f"{folder}: {what}; {mend}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """One file as it must be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class ModelOrigin(_Part):
    """What the folder was made from."""

    name: str
    sha256: str


class GoldenAnswer(_Part):
    """What the model answers greedily to one message, on the machine that converted it."""

    message: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


class Fidelity(_Part):
    """How far the conversion is from a float32 computation with the source's weights."""

    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence over the tokens, in nats."""
    top1: float
    """The share of tokens with the same most probable successor."""


class Manifest(_Part):
    """`manifest.json`"""

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
    """How it writes calls of tools, where that is another way than its template teaches."""
    onnxruntime: str
    """The version that the golden answer was made with."""
    golden: GoldenAnswer
    fidelity: Fidelity | None = None
    """None of a graph that was taken over: there are no weights of its source to compare it with."""
    files: dict[str, FileEntry]
    """Every file of the folder but the manifest."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class ListedFolder:
    """A folder that `list_models` found: its manifest, or what is wrong with it."""

    path: Path
    manifest: Manifest | None
    problem: str | None


def _open_regular(folder: Path, name: str) -> int:
    """Open a file for reading if it is an ordinary one with no other name. Returns its descriptor."""
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
    status = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = ModelFolderError(folder, f"'{name}' is not an ordinary file")
    elif status.st_nlink != 1:
        problem = ModelFolderError(
            folder, f"'{name}' has a second name (a hard link)", "replace it by a copy"
        )
    if problem:
        os.close(descriptor)
        raise problem
    return descriptor


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest alone.

    Raises:
        ModelFolderError: the folder or the manifest is missing or malformed.
    """
    if not folder.is_dir():
        raise ModelFolderError(folder, "there is no such folder", "pull or import the model first")
    if not os.path.lexists(folder / MANIFEST):
        mend = "name a folder that `fusewire model pull` or `import` has made; `fusewire model list` shows them"
        raise ModelFolderError(folder, f"it is no model folder: it holds no '{MANIFEST}'", mend)
    with os.fdopen(_open_regular(folder, MANIFEST), "rb") as file:
        raw = file.read()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ModelFolderError(
            folder, f"'{MANIFEST}' is malformed: {where}: {first['msg']}"
        ) from None
    odd = [
        name for name in manifest.files if name in (MANIFEST, ".", "..") or name != Path(name).name
    ]
    if odd:
        raise ModelFolderError(
            folder, f"'{MANIFEST}' names {odd[0]!r}, which is not a file of the folder"
        )
    return manifest


def hash_file(folder: Path, name: str) -> FileEntry:
    """Hash an ordinary file.

    Raises:
        ModelFolderError: it is missing, a link, or not an ordinary file.
    """
    with os.fdopen(_open_regular(folder, name), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, size=os.fstat(file.fileno()).st_size)


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    extra = sorted(present - manifest.files.keys())
    if extra:
        raise ModelFolderError(folder, f"'{extra[0]}' is not in the manifest", "move it elsewhere")
    if GRAPH not in manifest.files:
        raise ModelFolderError(folder, f"the manifest names no '{GRAPH}'")
    for name, wanted in manifest.files.items():
        found = hash_file(folder, name)
        if found.size != wanted.size:
            raise ModelFolderError(
                folder, f"'{name}' has {found.size} bytes, the manifest says {wanted.size}"
            )
        if found.sha256 != wanted.sha256:
            raise ModelFolderError(folder, f"'{name}' has another hash than the manifest says")


def verify(folder: Path) -> Manifest:
    """Check everything that can be checked without running the model.

    Every file is an ordinary one with a single name and the size and hash of the manifest, there
    is no other file, and the graph uses known operators and data inside the folder only.

    Raises:
        ModelFolderError: the first thing that is wrong.
    """
    from fusewire_worker_edge.graph_check import graph_problem  # noqa: PLC0415 - onnx is slow to import

    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    for name in manifest.files:
        if name.endswith(".onnx"):
            problem = graph_problem((folder / name).read_bytes(), manifest.files.keys())
            if problem:
                raise ModelFolderError(
                    folder, f"'{name}' {problem}", "use a model from a source that you trust"
                )
    return manifest


def list_models(root: Path) -> list[ListedFolder]:
    """The model folders directly under `root`, by name. Reads manifests only, no weights."""
    if not root.is_dir():
        return []
    found = []
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            found.append(ListedFolder(path, read_manifest(path), None))
        except ModelFolderError as exc:
            found.append(ListedFolder(path, None, exc.what))
    return found


@contextmanager
def locked(target: Path, purpose: str) -> Iterator[None]:
    """Hold the lock of one folder and purpose; waits for another process that holds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.{purpose}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary sibling to build a folder in, which becomes `target` when all went well.

    Raises:
        ModelFolderError: `target` exists already.
    """
    with locked(target, "build"):
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
    for path in folder.iterdir():
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
