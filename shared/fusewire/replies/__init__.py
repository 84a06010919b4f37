"""Replies of the HTTP API: ingest writes them, its OpenAPI document describes them, the command line reads them. Pure.

Names and fields are OpenAI's ("API reference") and OpenRouter's; what only Fusewire has stands in `fusion` and
`x_fusewire`. What is not known is null.
"""

from fusewire.replies import batches, chat, errors, fusions, models, openrouter, responses

__all__ = ["batches", "chat", "errors", "fusions", "models", "openrouter", "responses"]
