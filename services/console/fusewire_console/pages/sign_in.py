"""Signing in with an API key, and out."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fusewire_console.access import COOKIE, SignInError
from fusewire_console.site import Site


def routes(site: Site) -> list[Route]:
    """`/sign-in` and `/sign-out`."""

    async def form(request: Request) -> Response:
        return _form(site, local_path(request.query_params.get("next")))

    async def enter(request: Request) -> Response:
        fields = await request.form()
        key, path = str(fields.get("key", "")).strip(), local_path(str(fields.get("next", "")))
        try:
            await site.access.visitor(key)
        except SignInError as exc:
            return _form(site, path, exc.message or "give a key")
        response = RedirectResponse(path, 303)
        # With keys there is TLS, here or at a proxy, except on this machine.
        is_secure = request.url.hostname not in ("localhost", "127.0.0.1", "::1")
        response.set_cookie(
            COOKIE, key, httponly=True, samesite="strict", secure=is_secure, path="/"
        )
        return response

    async def leave(_request: Request) -> Response:
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(COOKIE, path="/")
        return response

    return [
        Route("/sign-in", form),
        Route("/sign-in", enter, methods=["POST"]),
        Route("/sign-out", leave, methods=["POST"]),
    ]


def _form(site: Site, path: str, error: str | None = None) -> Response:
    return site.renderer.page(
        "sign_in.html",
        visitor=None,
        now=site.clock(),
        status=401 if error else 200,
        next_path=path,
        error=error,
    )


def local_path(text: str | None) -> str:
    """A path of this console; the first page for anything else, which could lead elsewhere.

    >>> local_path("/outcomes?pool=a"), local_path("//evil.example"), local_path("/\\\\evil")
    ('/outcomes?pool=a', '/', '/')
    """
    if not text or not text.startswith("/") or text.startswith("//") or "\\" in text:
        return "/"
    return text if text.isprintable() else "/"
