"""The pepper: the secret with which API keys are hashed (HMAC-SHA256, see `admission.keys`)."""

import os
import secrets
from pathlib import Path

from fusewire.errors import StartupError
from fusewire.settings import Settings

FILE = "key-pepper"
LEAST_BYTES = 16


def pepper(settings: Settings) -> bytes:
    """Read the pepper from the variable `http.pepper_env`, else from a file in `data_dir`.

    The file is created at the first use.

    Raises:
        StartupError: it is too short, or the file cannot be read or created.
    """
    name, path = settings.http.pepper_env, settings.data_dir / FILE
    # Beside the database and not in it (docs/decisions/0026).
    variable = os.environ.get(name)
    if variable is not None:
        return _check(
            variable.encode(),
            f"${name}",
            f"give {name} {LEAST_BYTES} characters or more, or unset it",
        )
    try:
        if not path.exists():
            _make(path)
        content = path.read_bytes()
    except OSError as exc:
        raise StartupError(
            f"the secret of the API keys, {path}, cannot be used: {exc.strerror}",
            f"mend it, or set {name}",
        ) from None
    return _check(
        content,
        str(path),
        "restore it from a backup; if it is lost, remove it and make all keys anew",
    )


def _make(path: Path) -> None:
    """Write the file whole or not at all; of several processes that create it at once, one wins."""
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


def _check(secret: bytes, source: str, mend: str) -> bytes:
    """Strip a secret; raises StartupError, which must not quote it, if it is too short."""
    secret = secret.strip()
    if len(secret) < LEAST_BYTES:
        raise StartupError(
            f"the secret of the API keys, {source}, has fewer than {LEAST_BYTES} bytes", mend
        )
    return secret
