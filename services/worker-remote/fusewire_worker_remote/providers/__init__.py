"""The protocols that hosted models speak, one file each."""

from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, Provider, Reply
from fusewire_worker_remote.providers.openai import OpenAI

PROVIDERS: dict[str, Provider] = {"openai": OpenAI()}
"""By the name that `[models.<name>] provider` gives."""

__all__ = ["PROVIDERS", "HttpRequest", "HttpResponse", "OpenAI", "Provider", "Reply"]
