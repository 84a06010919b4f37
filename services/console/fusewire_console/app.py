"""The application: all pages, and what holds for each of them."""

from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from fusewire.store.analyst import QueryError, QueryRefused, QueryTimeout
from fusewire_console.access import Visitor
from fusewire_console.api import ApiError
from fusewire_console.guard import Guard
from fusewire_console.pages import ALL, page, sign_in
from fusewire_console.site import Site
from fusewire_console.views import OperatorsOnlyError

log = structlog.get_logger(__name__)

BODY_BYTES = 1024 * 1024
"""The largest form."""


class _Static(StaticFiles):
    """Static files, which may be kept for ever: their addresses change with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def build(site: Site) -> ASGIApp:
    """Build the application."""
    routes: list[BaseRoute] = []
    for module in (*ALL, sign_in):
        routes += module.routes(site)
    routes.append(Mount("/static", _Static(packages=[("fusewire_console", "static")])))
    app = Starlette(routes=routes, max_body_size=BODY_BYTES)
    for error in (404, ApiError, QueryError, OperatorsOnlyError, Exception):
        app.add_exception_handler(error, _handler(site))
    # Outermost, so that pages about errors have its headers too.
    return Guard(app, is_open=not site.access.is_required)


def _handler(site: Site) -> Any:
    """Shows an error as a page."""

    async def show(request: Request, exc: Exception) -> Response:
        if isinstance(exc, ApiError) and exc.status == 401 and site.access.is_required:
            # The key was revoked meanwhile.
            return page.to_sign_in(request)
        visitor: Visitor | None = getattr(request.state, "visitor", None)
        status, title, message = _describe(exc, visitor)
        if status >= 500:
            what = exc.what if isinstance(exc, QueryRefused) else None
            fault, path = type(exc).__name__, request.url.path
            log.error("console.failed", fault=fault, what=what, status=status, path=path)
        response = site.renderer.page(
            "error.html",
            visitor=visitor,
            now=site.clock(),
            status=status,
            title=title,
            message=message,
        )
        if page.is_part(request):
            # The part stays as it is, until it is asked for again.
            response.headers["hx-reswap"] = "none"
        return response

    return show


def _describe(exc: Exception, visitor: Visitor | None) -> tuple[int, str, str]:
    """Status, title and text of an error's page."""
    if isinstance(exc, ApiError):
        return _describe_refusal(exc)
    if isinstance(exc, QueryTimeout):
        return 503, "The database took too long", "Try it again, or choose less."
    if isinstance(exc, QueryError):
        # It names the database, which is no business of tenants.
        is_operator = visitor is not None and visitor.is_operator
        message = str(exc) if is_operator else "Try it again, or tell an operator."
        return 503, "The database gave no result", message
    if isinstance(exc, OperatorsOnlyError):
        return (
            403,
            "This page adds up all tenants",
            "It needs a key with the scope 'admin' of a tenant in [console] operators.",
        )
    if getattr(exc, "status_code", 500) == 404:
        return 404, "There is nothing at this address", "The first page leads to what there is."
    return 500, "Fusewire failed", "The log of the console has more, under console.failed."


def _describe_refusal(error: ApiError) -> tuple[int, str, str]:
    if error.status == 401:
        message = "It asks for a key: set [http] keys = 'required' for the console too."
        return 503, "The API refused this", message
    title = "The API cannot answer now" if error.status == 503 else "The API refused this"
    return error.status, title, error.message
