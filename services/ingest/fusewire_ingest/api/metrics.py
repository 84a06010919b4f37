"""Metrics for those with a key, where others than this machine can reach the API; see `service.operations`."""

from fastapi import APIRouter, Response
from prometheus_client import generate_latest

from fusewire import telemetry
from fusewire_ingest.api.dependencies import Who


def routes() -> APIRouter:
    """`/metrics`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def metrics(_who: Who) -> Response:
        return Response(generate_latest(telemetry.REGISTRY), media_type="text/plain; version=0.0.4")

    return router
