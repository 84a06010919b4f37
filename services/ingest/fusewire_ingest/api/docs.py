"""The OpenAPI document, and a page that shows it and loads nothing from other hosts."""

from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response

from fusewire_ingest.api.dependencies import AnyCaller
from fusewire_ingest.api.schemas import SCHEMAS

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
"""Content security policy of the page: nothing is loaded from other hosts."""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Fusewire</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null})
</script>
</body>
</html>
"""
_ERROR = {
    "description": "An error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def routes(app: FastAPI) -> APIRouter:
    """`/openapi.json` and `/docs`; they need a key if the API does."""
    router = APIRouter(include_in_schema=False)
    document = cache(lambda: _document(app))

    @router.get("/openapi.json")
    async def openapi(_caller: AnyCaller) -> Response:
        return JSONResponse(document())

    @router.get("/docs")
    async def page(_caller: AnyCaller) -> Response:
        return HTMLResponse(_PAGE, headers={"content-security-policy": POLICY})

    @router.get("/docs/{name}")
    async def asset(name: str, _caller: AnyCaller) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        body = files("fastapi_swagger.resources").joinpath(name).read_bytes()
        return Response(body, media_type=ASSETS[name], headers={"cache-control": "max-age=3600"})

    return router


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description="One prompt, several models, one answer. "
        "Each path is there under `/api/v1` too.",
        routes=app.routes,
    )
    for path in document["paths"].values():
        for operation in path.values():
            # FastAPI's own form of errors, which no route replies with.
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _ERROR
    components = document.setdefault("components", {})
    components["schemas"] = SCHEMAS
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    return document
