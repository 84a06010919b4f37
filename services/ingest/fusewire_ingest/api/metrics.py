"""Metrics with a key, for an API that other machines can reach; see `service.Host`.

A key shows what is of no tenant, and what is of its own: labels name tenants, pools and models
(docs/decisions/0057). The port of operations shows everything.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from fusewire.metrics import REGISTRY
from fusewire_ingest.admission.rules import usable_models
from fusewire_ingest.api.dependencies import AdminCaller, Dependencies


def routes(dependencies: Dependencies) -> APIRouter:
    """`/metrics`."""
    router = APIRouter(include_in_schema=False)
    settings = dependencies.settings
    queues = settings.pools.keys() | settings.models.keys()

    @router.get("/metrics")
    async def metrics(caller: AdminCaller) -> Response:
        pools = dependencies.pools(caller.tenant).keys()
        models = usable_models(settings, caller.rule).keys()
        registry = CollectorRegistry()
        registry.register(TenantMetrics(caller.tenant, pools, models, queues - pools - models))
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return router


@dataclass(frozen=True, eq=False)
class TenantMetrics(Collector):
    """The process's metrics, without samples about what a tenant does not know of.

    Attributes:
        tenant: the tenant.
        pools: the pools that it may use.
        models: the models that may see its prompts.
        hidden_queues: names of all other pools and models, which name queues too.
    """

    tenant: str
    pools: Set[str]
    models: Set[str]
    hidden_queues: Set[str]

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        for family in REGISTRY.collect():
            metric = Metric(family.name, family.documentation, family.type, family.unit)
            metric.samples = [
                sample for sample in family.samples if self._is_visible(sample.labels)
            ]
            yield metric

    def _is_visible(self, labels: Mapping[str, str]) -> bool:
        # A durable is named by its queue and its priority.
        queue = labels.get("durable", "").rpartition("-")[0]
        return (
            labels.get("tenant", self.tenant) == self.tenant
            and ("pool" not in labels or labels["pool"] in self.pools)
            and ("model" not in labels or labels["model"] in self.models)
            and queue not in self.hidden_queues
        )
