"""The keys of the embedded broker's users, made at its first start (docs/decisions/0061)."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import nkeys

from fusewire.accounts import User, users
from fusewire.errors import EXIT_STORED, StartupError

LIST = "public.env"
"""The file with each user's public key, as `fusewire topology nkeys` writes it."""
TENANTS = ("default",)
"""Tenants whose producers have a user from the start; others are added by `topology nkeys`."""


def folder_of(data_dir: Path) -> Path:
    """Where the keys of a data folder are; as an absolute path, for processes elsewhere."""
    return data_dir.resolve() / "nats" / "keys"


def tenants(folder: Path) -> Sequence[str]:
    """The tenants that have a user."""
    names = {path.stem.removeprefix("tenant-") for path in folder.glob("tenant-*.seed")}
    return sorted({*TENANTS, *names})


def prepare(folder: Path) -> Mapping[str, str]:
    """Make the keys that are missing, as all are at the first start.

    Returns:
        For nats-server's environment: the variable of each user, with its public key.

    Raises:
        StartupError: a key that was made is lost or damaged.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    earlier = _read_list(folder / LIST)
    try:
        all_users = users(tenants=tenants(folder))
    except ValueError as exc:
        raise StartupError(str(exc), f"remove its seed from {folder}") from None
    public = {
        user.variable.removeprefix("$"): _public_key(folder, user, earlier) for user in all_users
    }
    if public.items() - earlier.items():
        lines = (f"{name}={key}\n" for name, key in {**earlier, **public}.items())
        _replace(folder / LIST, "".join(lines))
    return public


def _read_list(path: Path) -> Mapping[str, str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise _damage(path, "cannot be read") from None
    pairs = (line.partition("=") for line in lines)
    return {name: key for name, _, key in pairs if key}


def _public_key(folder: Path, user: User, earlier: Mapping[str, str]) -> str:
    """The public key of a user, whose key is made if it never had one."""
    path = folder / f"{user.name}.seed"
    earlier_key = earlier.get(user.variable.removeprefix("$"))
    try:
        seed = path.read_bytes().strip()
    except FileNotFoundError:
        if earlier_key is not None:
            raise _damage(path, "is lost") from None
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
        _replace(path, seed.decode())
    except OSError as exc:
        raise _damage(path, f"cannot be read ({exc.strerror})") from None
    try:
        public = str(nkeys.from_seed(bytearray(seed)).public_key.decode())
    except (nkeys.NkeysError, ValueError):
        raise _damage(path, "is damaged: it holds no seed of an nkey") from None
    if earlier_key not in (None, public):
        raise _damage(path, f"is another key than {LIST} beside it names")
    return public


def _damage(path: Path, what: str) -> StartupError:
    mend = (
        f"put it back, or move {path.parent} away: the next start makes new keys, and only "
        "producers of tenants have to be given theirs"
    )
    return StartupError(f"the key of the embedded NATS server {path} {what}", mend, EXIT_STORED)


def _replace(path: Path, text: str) -> None:
    """Write a file that only its owner may read; a reader sees all of it or the earlier one."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
