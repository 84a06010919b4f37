"""The OpenAPI document, and a page that shows it without any other host."""

from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response

from fusewire_ingest.api.dependencies import Who
from fusewire_ingest.api.schemas import SCHEMAS

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""Whatever the page may want: nothing comes from elsewhere."""
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
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null})</script>
</body>
</html>
"""
_ERROR = {
    "description": "An error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def routes(app: FastAPI) -> APIRouter:
    """`/openapi.json` and `/docs`; where keys are needed, they are needed here too."""
    router = APIRouter(include_in_schema=False)
    document = cache(lambda: _document(app))

    @router.get("/openapi.json")
    async def openapi(_who: Who) -> Response:
        return JSONResponse(document())

    @router.get("/docs")
    async def page(_who: Who) -> Response:
        return HTMLResponse(_PAGE, headers={"content-security-policy": POLICY})

    @router.get("/docs/{name}")
    async def asset(name: str, _who: Who) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        body = files("fastapi_swagger.resources").joinpath(name).read_bytes()
        return Response(body, media_type=ASSETS[name], headers={"cache-control": "max-age=3600"})

    return router


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title,
        version=app.version,
        description="One prompt, several models, one answer. Each path is there under `/api/v1` too.",
        routes=app.routes,
    )
    for path in found["paths"].values():
        for operation in path.values():
            # FastAPI's own shape of errors, which no route answers with.
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _ERROR
    parts = found.setdefault("components", {})
    parts["schemas"] = SCHEMAS
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"key": []}, {}]
    return found
