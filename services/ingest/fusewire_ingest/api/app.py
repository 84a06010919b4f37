"""The application: all routes and handlers of errors."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from fusewire_ingest.api import (
    batches,
    caller,
    chat,
    docs,
    errors,
    events,
    files,
    fusions,
    keys,
    metrics,
    models,
    openrouter,
    prompt,
    responses,
    status,
    votes,
)
from fusewire_ingest.api.dependencies import Dependencies
from fusewire_ingest.api.error_middleware import ErrorMiddleware
from fusewire_ingest.rate_limits import RATE_HEADERS

PREFIXES = ("/v1", errors.OPENROUTER_PREFIX)
"""OpenAI's, and OpenRouter's."""
EXPOSED_HEADERS = (
    "x-request-id",
    "x-fusewire-outcome",
    "retry-after",
    *RATE_HEADERS,
)
"""Headers that scripts of a web page may read."""


def build(dependencies: Dependencies) -> FastAPI:
    """Build the application."""
    # FastAPI's own documentation pages load scripts from another host; see `docs`.
    app = FastAPI(title="Fusewire", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.dependencies = dependencies
    errors.add_handlers(app)
    if origins := dependencies.settings.http.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(
        ErrorMiddleware,
        new_id=dependencies.new_id,
        rate_headers=dependencies.rate_limits.headers,
    )
    modules = (
        fusions,
        prompt,
        events,
        models,
        chat,
        responses,
        files,
        batches,
        votes,
        openrouter,
        keys,
        caller,
        status,
    )
    routers = [module.routes(dependencies) for module in modules]
    for number, prefix in enumerate(PREFIXES):
        for router in routers:
            app.include_router(router, prefix=prefix, include_in_schema=number == 0)
    app.include_router(docs.routes(app))
    if dependencies.settings.http.operations_port is None:
        app.include_router(metrics.routes(dependencies))
    return app
