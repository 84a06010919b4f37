"""Signing in with an API key, and out."""

from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fusewire.http_server import is_loopback
from fusewire_console.access import COOKIE, SignInError
from fusewire_console.site import Site

IN_THE_CLEAR = (
    "this page came over plain HTTP, so the browser would not keep the key, and others may have"
    " seen it: open the page over HTTPS, and replace the key (fusewire keys rotate)"
)


def routes(site: Site) -> list[Route]:
    """`/sign-in` and `/sign-out`."""

    async def form(request: Request) -> Response:
        return await _show(site, request)

    async def enter(request: Request) -> Response:
        return await _enter(site, request)

    async def leave(_request: Request) -> Response:
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(COOKIE, path="/")
        return response

    return [
        Route("/sign-in", form),
        Route("/sign-in", enter, methods=["POST"]),
        Route("/sign-out", leave, methods=["POST"]),
    ]


async def _show(site: Site, request: Request) -> Response:
    """The form; whoever has signed in goes on."""
    path, key = local_path(request.query_params.get("next")), request.cookies.get(COOKIE)
    try:
        await site.access.visitor(key)
    except SignInError as exc:
        response = _form(site, path, exc.message)
        if key:
            response.delete_cookie(COOKIE, path="/")
        elif _follows_link(request):
            query = urlencode({"next": path, "again": 1})
            response.headers["refresh"] = f"0; url=/sign-in?{query}"
        return response
    return RedirectResponse(path, 303)


async def _enter(site: Site, request: Request) -> Response:
    """Keep a valid key in the cookie."""
    async with request.form() as fields:
        key, path = str(fields.get("key", "")).strip(), local_path(str(fields.get("next", "")))
    # With keys there is TLS, here or at a proxy, except on this machine.
    is_secure = not is_loopback(request.url.hostname or "")
    if is_secure and urlsplit(request.headers.get("origin", "")).scheme == "http":
        return _form(site, path, IN_THE_CLEAR)
    try:
        await site.access.visitor(key)
    except SignInError as exc:
        return _form(site, path, exc.message or "give a key")
    response = RedirectResponse(path, 303)
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=is_secure, path="/")
    return response


def _follows_link(request: Request) -> bool:
    """Whether the visitor comes by a link of another page.

    Then browsers keep back a cookie that is SameSite=Strict, until this page itself asks.
    """
    is_other = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    return is_other and "again" not in request.query_params


def _form(site: Site, path: str, error: str) -> Response:
    return site.renderer.page(
        "sign_in.html",
        visitor=None,
        now=site.clock(),
        status=401 if error else 200,
        next_path=path,
        error=error,
    )


def local_path(text: str | None) -> str:
    r"""A path of this console; the first page for anything else, which could lead elsewhere.

    >>> local_path("/outcomes?pool=a"), local_path("//evil.example"), local_path("/\\evil")
    ('/outcomes?pool=a', '/', '/')
    """
    if not text or not text.startswith("/") or text.startswith("//") or "\\" in text:
        return "/"
    return text if text.isprintable() else "/"
