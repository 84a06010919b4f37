"""How a service shows NATS who it is, and whom it trusts."""

from pathlib import Path
from typing import Any

from fusewire.accounts import api_prefix
from fusewire.errors import StartupError
from fusewire.settings import Nats


def of_service(service: str, settings: Nats) -> Nats:
    """How a service connects: with its own key, where the settings name a folder of keys."""
    if settings.nkey is None or not settings.nkey.is_dir():
        return settings
    changes = {"nkey": settings.nkey / f"{service}.seed", "js_prefix": api_prefix(service)}
    return settings.model_copy(update=changes)


def security(settings: Nats) -> Any:
    """FastStream's security for these settings; None if there is neither an identity nor TLS.

    Raises:
        StartupError: the nkey cannot be used.
    """
    if settings.credentials is None and settings.nkey is None and settings.tls_ca is None:
        return None
    import ssl  # noqa: PLC0415 - only where it is asked for

    from faststream.nats.security import NatsCredentials, NatsNKey, NatsSecurity  # noqa: PLC0415 - loaded only where it is needed

    context = ssl.create_default_context(cafile=str(settings.tls_ca)) if settings.tls_ca else None
    use_ssl = context is not None
    if settings.credentials is not None:
        return NatsCredentials(str(settings.credentials), ssl_context=context, use_ssl=use_ssl)
    if settings.nkey is not None:
        return NatsNKey.from_seed(_seed(settings.nkey), ssl_context=context, use_ssl=use_ssl)
    return NatsSecurity(ssl_context=context, use_ssl=True)


def _seed(path: Path) -> str:
    """The seed in a file; the space around it is left out, as a line break at its end.

    Raises:
        StartupError: the file cannot be read, or holds no seed of a user.
    """
    try:
        seed = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise StartupError(
            f"the nkey {path} cannot be read: {reason}", "mend [nats] nkey (FUSEWIRE_NATS__NKEY)"
        ) from None
    if not seed.startswith("SU"):
        raise StartupError(
            f"{path} holds no seed of a user's nkey, which begins with SU",
            "make one with `fusewire topology nkeys`, or point [nats] nkey at the right file",
        )
    return seed
