"""The protocols that hosted models speak, one file each."""

from fusewire_worker_remote.providers.anthropic import Anthropic
from fusewire_worker_remote.providers.base import (
    Assembly,
    HttpRequest,
    HttpResponse,
    Provider,
    ProviderReply,
)
from fusewire_worker_remote.providers.deepseek import DeepSeek
from fusewire_worker_remote.providers.gemini import Gemini
from fusewire_worker_remote.providers.mistral import Mistral
from fusewire_worker_remote.providers.openai import OpenAI

PROVIDERS: dict[str, Provider] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
    "gemini": Gemini(),
    "mistral": Mistral(),
    "deepseek": DeepSeek(),
}
"""Protocols by their name in `[models.<name>] provider`."""

__all__ = [
    "PROVIDERS",
    "Anthropic",
    "Assembly",
    "DeepSeek",
    "Gemini",
    "HttpRequest",
    "HttpResponse",
    "Mistral",
    "OpenAI",
    "Provider",
    "ProviderReply",
]
