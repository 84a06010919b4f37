"""What all pages do: find out who visits, and render."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fusewire_console.access import COOKIE, SignInError, Visitor
from fusewire_console.site import Site

Handler = Callable[[Request, Visitor], Awaitable[Response]]


def route(site: Site, path: str, handler: Handler, *, method: str = "GET") -> Route:
    """A route whose handler gets the visitor; who has not signed in is asked to."""

    async def handle(request: Request) -> Response:
        try:
            visitor = await site.access.visitor(request.cookies.get(COOKIE))
        except SignInError:
            return to_sign_in(request)
        request.state.visitor = visitor
        return await handler(request, visitor)

    return Route(path, handle, methods=[method])


def to_sign_in(request: Request) -> Response:
    """Have a visitor sign in, and come back to this page."""
    if is_part(request):
        # The whole page signs in, not its part.
        return Response(status_code=401, headers={"hx-refresh": "true"})
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse("/sign-in?" + urlencode({"next": path}), 303)


def render(site: Site, template: str, visitor: Visitor, **context: Any) -> Response:
    """A page for a visitor."""
    return site.renderer.page(template, visitor=visitor, now=site.clock(), **context)


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of the page alone."""
    return request.headers.get("hx-request") == "true"


def position(text: str) -> dict[str, object] | None:
    """The time and the id of the last row of the page before, `TIME,ID`; None if it is neither."""
    at, _, row_id = text.partition(",")
    try:
        return {"at": datetime.fromisoformat(at), "id": row_id}
    except ValueError:
        return None
