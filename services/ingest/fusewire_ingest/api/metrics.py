"""Metrics with a key, for an API that other machines can reach; see `service.Host`."""

from fastapi import APIRouter, Response
from prometheus_client import generate_latest

from fusewire.metrics import REGISTRY
from fusewire_ingest.api.dependencies import AdminCaller


def routes() -> APIRouter:
    """`/metrics`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def metrics(_caller: AdminCaller) -> Response:
        return Response(generate_latest(REGISTRY), media_type="text/plain; version=0.0.4")

    return router
