"""The application: every route, every error in one shape."""

from fastapi import FastAPI

from fusewire_ingest.api import batches, chat, docs, errors, files, fusions, metrics, models
from fusewire_ingest.api.parts import Parts

PREFIXES = ("/v1", "/api/v1")
"""OpenAI's, and OpenRouter's."""


def build(parts: Parts) -> FastAPI:
    """Put it together."""
    # FastAPI's own documentation pages load scripts from another host, which an air-gapped site has not.
    app = FastAPI(title="Fusewire", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.parts = parts
    errors.handle(app)
    app.add_middleware(errors.Answering, new_id=parts.new_id)
    # Their paths have no prefix: each is there under both.
    routers = [part.routes(parts) for part in (fusions, models, chat, files, batches)]
    for number, prefix in enumerate(PREFIXES):
        for router in routers:
            app.include_router(router, prefix=prefix, include_in_schema=number == 0)
    app.include_router(docs.routes(app))
    app.include_router(metrics.routes())
    return app
