"""The bodies of the HTTP API's replies. Pure.

Ingest writes them, its OpenAPI document describes them, and the command line reads them. Names and
fields are OpenAI's ("API reference") and OpenRouter's; Fusewire's own are in `fusion` and
`x_fusewire`. Unknown values are null.
"""

from fusewire.replies import (
    batches,
    chat,
    console,
    errors,
    events,
    fusions,
    models,
    openrouter,
    responses,
    votes,
)

__all__ = [
    "batches",
    "chat",
    "console",
    "errors",
    "events",
    "fusions",
    "models",
    "openrouter",
    "responses",
    "votes",
]
