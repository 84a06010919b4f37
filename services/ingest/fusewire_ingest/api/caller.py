"""Who a key belongs to, and what it may be used for."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire.http_server import needs_keys
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import AnyCaller, Dependencies


def routes(dependencies: Dependencies) -> APIRouter:
    """`/caller`."""
    router = APIRouter(tags=["console"])
    needs_key = needs_keys(dependencies.settings.http)

    @router.get("/caller", summary="Who you are to Fusewire", responses=schemas.reply("Caller"))
    async def get(caller: AnyCaller) -> Response:
        reply: replies.console.Caller = {
            "object": "caller",
            "tenant": caller.tenant,
            "key_id": caller.key_id,
            "scopes": sorted(caller.scopes),
            "needs_key": needs_key,
        }
        return JSONResponse(reply)

    return router
