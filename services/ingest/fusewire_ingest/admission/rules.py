"""From the configuration to what admission works on."""

from collections.abc import Collection
from datetime import datetime

from fusewire import pricing
from fusewire.settings import PRESETS, EdgeModel, Model, Pool, Settings
from fusewire_ingest.admission import estimate
from fusewire_ingest.admission.admit import PoolRule, TenantRule
from fusewire_ingest.admission.model_names import ModelNames


def names(settings: Settings) -> ModelNames:
    """What clients may call the configured models."""
    slugs = {name: m.model if m.kind == "remote" else None for name, m in settings.models.items()}
    return ModelNames.of(slugs, settings.aliases)


def pool_rules(settings: Settings) -> dict[str, PoolRule]:
    """All configured pools."""
    known = names(settings)
    return {
        name: PoolRule(p.mode, p.residency, p.deadline_s, p.batch_deadline_s, known)
        for name, p in settings.pools.items()
    }


def default_pool(pools: Collection[str], allowed: Collection[str]) -> str:
    """The pool that stands for fusion as such, of all pools and those that a tenant may use (none: all)."""
    some = allowed or pools
    return "default" if "default" in some or not some else next(iter(some))


def tenant_rule(settings: Settings, tenant: str) -> TenantRule:
    """What a tenant may."""
    rule = settings.tenant(tenant)
    return TenantRule(rule.residency, frozenset(rule.pools))


async def book(settings: Settings, at: datetime) -> estimate.Catalogue:
    """What estimates are made from: all pools, also under each preset, and the models with their prices at a time."""
    pools = settings.pools
    variants = {
        (name, preset): _pool(pool.model_copy(update=changed))
        for name, pool in pools.items()
        for preset, changed in PRESETS.items()
    }
    models = {name: await _model(model, at) for name, model in settings.models.items()}
    return estimate.Catalogue({name: _pool(pool) for name, pool in pools.items()}, models, variants)


async def _model(model: Model, at: datetime) -> estimate.Model:
    if isinstance(model, EdgeModel):
        return estimate.Model(
            is_edge=True, rates=None, max_tokens=model.max_tokens, has_tools=model.tools
        )
    rates = await pricing.rates(model, at)
    return estimate.Model(
        is_edge=False, rates=rates, max_tokens=model.max_tokens, has_images=model.images
    )


def _pool(pool: Pool) -> estimate.Pool:
    return estimate.Pool(
        members=tuple(estimate.Member(m.name, m.model, m.system) for m in pool.members),
        judge=pool.judge or next(iter(pool.jury), None),
        jury=pool.jury,
        max_tokens=pool.max_tokens,
        is_gated=pool.gate == "edge-first",
        is_hedged=pool.hedge > 0,
        is_guarded=pool.guard,
        debate_rounds=pool.debate_rounds,
        criteria=pool.criteria,
    )
