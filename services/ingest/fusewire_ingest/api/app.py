"""The application: every route, every error in one shape."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from fusewire_ingest.api import (
    batches,
    chat,
    docs,
    errors,
    files,
    fusions,
    metrics,
    models,
    openrouter,
    responses,
)
from fusewire_ingest.api.dependencies import Dependencies

PREFIXES = ("/v1", errors.OPENROUTER_PREFIX)
"""OpenAI's, and OpenRouter's."""


def build(parts: Dependencies) -> FastAPI:
    """Put it together."""
    # FastAPI's own documentation pages load scripts from another host, which an air-gapped site has not.
    app = FastAPI(title="Fusewire", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.parts = parts
    errors.handle(app)
    if origins := parts.settings.http.origins:
        told = ["x-request-id", "x-fusewire-outcome", "retry-after"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=told,
        )
    app.add_middleware(errors.ErrorMiddleware, new_id=parts.new_id)
    # Their paths have no prefix: each is there under both.
    routers = [
        part.routes(parts)
        for part in (fusions, models, chat, responses, files, batches, openrouter)
    ]
    for number, prefix in enumerate(PREFIXES):
        for router in routers:
            app.include_router(router, prefix=prefix, include_in_schema=number == 0)
    app.include_router(docs.routes(app))
    app.include_router(metrics.routes())
    return app
