"""The protocols that hosted models speak, one file each.

A file has the name of its provider in `fusewire.settings.Provider`; its `PROVIDER` is the
protocol.
"""

from importlib import import_module
from typing import get_args

from fusewire.settings import Provider as ProviderName
from fusewire_worker_remote.providers.base import (
    Assembly,
    HttpRequest,
    HttpResponse,
    Provider,
    ProviderReply,
)

PROVIDERS: dict[str, Provider] = {
    name: import_module(f"{__name__}.{name}").PROVIDER for name in get_args(ProviderName)
}
"""Protocols by their name in `[models.<name>] provider`."""

__all__ = ["PROVIDERS", "Assembly", "HttpRequest", "HttpResponse", "Provider", "ProviderReply"]
