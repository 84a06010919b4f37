"""Ask: submit a prompt, and see the members answer and the judge decide."""

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fusewire.contracts.base import MODES
from fusewire_console.access import Visitor
from fusewire_console.api import ApiError
from fusewire_console.figures.fusion_progress import FusionProgress
from fusewire_console.pages import ask_events, page
from fusewire_console.site import Site

POOL_PREFIX = "fusewire/"
"""Before the names of pools in the API's list of models."""
FIELDS = ("prompt", "pool", "mode", "residency", "form")
RESIDENCIES = ("any", "edge-only")
MOST_PROMPT_CHARS = 10_000
"""Characters of each message that the page of a fusion shows."""
NO_SCOPE = "This key may not submit prompts; sign in with one that has the scope 'submit'."


def routes(site: Site) -> list[Route]:
    """`/ask`, and below it the fusions that were asked for."""

    async def form(_request: Request, visitor: Visitor) -> Response:
        fields = {"pool": "default", "form": site.clock().isoformat()}
        return await _form(site, visitor, fields)

    async def submit(request: Request, visitor: Visitor) -> Response:
        return await _submit(site, request, visitor)

    async def show(request: Request, visitor: Visitor) -> Response:
        fusion_id = request.path_params["fusion_id"]
        prompt = await site.api.get(visitor.key, f"{_path(fusion_id)}/prompt")
        progress = _progress(site, prompt["pool"])
        await ask_events.read_progress(site, visitor, fusion_id, progress)
        return page.render(
            site,
            "ask_fusion.html",
            visitor,
            fusion_id=fusion_id,
            prompt=prompt,
            most_chars=MOST_PROMPT_CHARS,
            progress=progress,
        )

    async def events(request: Request, visitor: Visitor) -> Response:
        fusion_id = request.path_params["fusion_id"]
        prompt = await site.api.get(visitor.key, f"{_path(fusion_id)}/prompt")
        progress = _progress(site, prompt["pool"])
        return ask_events.EventStream(ask_events.pieces(site, visitor, fusion_id, progress))

    async def cancel(request: Request, visitor: Visitor) -> Response:
        fusion_id = request.path_params["fusion_id"]
        await site.api.post(visitor.key, f"{_path(fusion_id)}/cancel", {})
        return RedirectResponse(f"/ask/{quote(fusion_id, safe='')}", 303)

    return [
        page.route(site, "/ask", form),
        page.route(site, "/ask", submit, method="POST"),
        page.route(site, "/ask/{fusion_id}", show),
        page.route(site, "/ask/{fusion_id}/events", events),
        page.route(site, "/ask/{fusion_id}/cancel", cancel, method="POST"),
    ]


def _path(fusion_id: str) -> str:
    return f"/v1/fusions/{quote(fusion_id, safe='')}"


def _progress(site: Site, pool_name: str) -> FusionProgress:
    """The beginning; a pool that this console does not know has no cards until its plan comes."""
    pool = site.settings.pools.get(pool_name)
    members = [(member.name, member.model) for member in pool.members] if pool else []
    return FusionProgress.of_pool(members)


async def _pools(site: Site, visitor: Visitor) -> list[str]:
    """The pools that the visitor may use."""
    models = await site.api.get(visitor.key, "/v1/models")
    names = [model["id"] for model in models["data"]]
    return [name.removeprefix(POOL_PREFIX) for name in names if name.startswith(POOL_PREFIX)]


async def _form(
    site: Site,
    visitor: Visitor,
    fields: Mapping[str, str],
    error: str | None = None,
    status: int = 200,
) -> Response:
    if "submit" not in visitor.scopes and "admin" not in visitor.scopes:
        error = error or NO_SCOPE
    try:
        pools = await _pools(site, visitor)
    except ApiError as exc:
        # The text that was typed must not be lost.
        pools = [fields["pool"]] if fields.get("pool") else []
        error, status = error or exc.message, status if error else exc.status
    return page.render(
        site,
        "ask.html",
        visitor,
        status=status,
        fields=dict.fromkeys(FIELDS, "") | dict(fields),
        pools=pools,
        modes=MODES,
        residencies=RESIDENCIES,
        error=error,
    )


async def _submit(site: Site, request: Request, visitor: Visitor) -> Response:
    form = await request.form()
    fields = {name: str(form.get(name, "")) for name in FIELDS}
    if not fields["prompt"].strip():
        return await _form(site, visitor, fields, "Write a prompt.", 400)
    try:
        fusion = await site.api.post(visitor.key, "/v1/fusions", _submission(fields))
    except ApiError as exc:
        return await _form(site, visitor, fields, exc.message, exc.status)
    return RedirectResponse(f"/ask/{quote(fusion['id'], safe='')}", 303)


def _submission(fields: Mapping[str, str]) -> dict[str, Any]:
    """The body of `POST /v1/fusions`. The same form that is sent twice is one fusion."""
    digest = hashlib.sha256("\0".join(fields[name] for name in FIELDS).encode()).hexdigest()
    body = {
        "custom_id": f"ask-{digest[:24]}",
        # As browsers send it, a line ends with CR and LF.
        "prompt": fields["prompt"].replace("\r\n", "\n"),
    }
    return body | {name: fields[name] for name in ("pool", "mode", "residency") if fields[name]}
