"""The application: all pages, and what holds for each of them."""

from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from fusewire.store.analyst import QueryError
from fusewire_console.api import ApiError
from fusewire_console.guard import Guard
from fusewire_console.pages import ALL, sign_in
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
    routes: list[BaseRoute] = [route for module in ALL for route in module.routes(site)]
    routes += sign_in.routes(site)
    routes.append(Mount("/static", _Static(packages=[("fusewire_console", "static")])))
    app = Starlette(routes=routes, max_body_size=BODY_BYTES)
    for error in (404, ApiError, QueryError, OperatorsOnlyError, Exception):
        app.add_exception_handler(error, _handler(site))
    # Outermost, so that pages about errors have its headers too.
    return Guard(app, is_open=not site.access.is_required)


def _handler(site: Site) -> Any:
    """Shows an error as a page."""

    async def show(request: Request, exc: Exception) -> Response:
        if isinstance(exc, ApiError) and exc.status == 401:
            # The key was revoked meanwhile.
            return RedirectResponse("/sign-in", 303)
        status, title, message = _describe(exc)
        if status == 500:
            log.error("console.broken", fault=type(exc).__name__, path=request.url.path)
        return site.renderer.page(
            "error.html",
            visitor=None,
            now=site.clock(),
            status=status,
            title=title,
            message=message,
        )

    return show


def _describe(exc: Exception) -> tuple[int, str, str]:
    """Status, title and text of an error's page."""
    if isinstance(exc, ApiError):
        return exc.status, "The API refused this", exc.message
    if isinstance(exc, QueryError):
        return 503, "The database gave no result", str(exc)
    if isinstance(exc, OperatorsOnlyError):
        return (
            403,
            "This page adds up all tenants",
            "It needs a key with the scope 'admin' of a tenant in [console] operators.",
        )
    if getattr(exc, "status_code", 500) == 404:
        return 404, "There is nothing at this address", "Choose a page on the left."
    return 500, "Fusewire failed", "The log of the console has more, under console.broken."
