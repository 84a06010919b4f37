"""The pepper: the secret that API keys are hashed with."""

import os
import secrets
from pathlib import Path

from fusewire.errors import StartupError
from fusewire.settings import Settings

FILE = "key-pepper"
LEAST_BYTES = 16


def pepper(settings: Settings) -> bytes:
    """From `http.pepper_env`; where that is not set, from a file in `data_dir` that is made at the first use.

    Raises:
        StartupError: it is too short, or the file cannot be read or made.
    """
    name, path = settings.http.pepper_env, settings.data_dir / FILE
    given = os.environ.get(name)
    if given is not None:
        return _checked(
            given.encode(), f"${name}", f"give {name} {LEAST_BYTES} characters or more, or unset it"
        )
    try:
        if not path.exists():
            _make(path)
        found = path.read_bytes()
    except OSError as exc:
        raise StartupError(
            f"the secret of the API keys, {path}, cannot be used: {exc.strerror}",
            f"mend it, or set {name}",
        ) from None
    return _checked(
        found,
        str(path),
        "restore it from a backup; if it is lost, remove it and make all keys anew",
    )


def _make(path: Path) -> None:
    """Write it whole or not at all; of several that make it at once, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{FILE}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def _checked(found: bytes, where: str, mend: str) -> bytes:
    found = found.strip()
    if len(found) < LEAST_BYTES:
        raise StartupError(
            f"the secret of the API keys, {where}, has fewer than {LEAST_BYTES} bytes", mend
        )
    return found
