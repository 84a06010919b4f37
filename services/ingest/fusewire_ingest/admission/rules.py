"""Build admission's rules from the configuration."""

from collections.abc import Callable, Collection
from datetime import datetime

from fusewire import pricing
from fusewire.settings import PRESETS, EdgeModel, Model, Pool, Settings, Tenant
from fusewire_ingest.admission import estimate
from fusewire_ingest.admission.admit import PoolRule, TenantRule
from fusewire_ingest.admission.budgets import TOKENS_PER_MTOK, BudgetLimit
from fusewire_ingest.admission.model_names import ModelNames

UNLISTED = Tenant()
"""The rules of a tenant without a table of its own."""


def names(settings: Settings, tenant: Tenant = UNLISTED) -> ModelNames:
    """All spellings of the models that may see a tenant's prompts."""
    models = usable_models(settings, tenant)
    slugs = {
        name: model.model if model.kind == "remote" else None for name, model in models.items()
    }
    aliases = {alias: name for alias, name in settings.aliases.items() if name in models}
    return ModelNames.of(slugs, aliases)


def pool_rules(settings: Settings, tenant: Tenant = UNLISTED) -> dict[str, PoolRule]:
    """Rules of the pools that a tenant may use, by name."""
    model_names = names(settings, tenant)
    pools = {name: settings.pools[name] for name in tenant.usable_pools(settings.pools)}
    return {
        name: PoolRule(
            pool.mode, pool.residency, pool.deadline_s, pool.batch_deadline_s, model_names
        )
        for name, pool in pools.items()
    }


def default_pool(pools: Collection[str]) -> str:
    """The pool for requests that name none: `default`, or else the first that the tenant may use.

    Args:
        pools: those that the tenant may use.
    """
    return "default" if "default" in pools or not pools else next(iter(pools))


def tenant_rules(settings: Settings) -> Callable[[str], TenantRule]:
    """A look-up of the rule of each tenant, by name."""
    rules = {name: _tenant_rule(settings, tenant) for name, tenant in settings.tenants.items()}
    general_rule = _tenant_rule(settings, UNLISTED)
    return lambda tenant: rules.get(tenant, general_rule)


def usable_models(settings: Settings, tenant: Tenant) -> dict[str, Model]:
    """The models that may see a tenant's prompts, by name."""
    return {
        name: model
        for name, model in settings.models.items()
        if not tenant.models or name in tenant.models
    }


def _tenant_rule(settings: Settings, tenant: Tenant) -> TenantRule:
    return TenantRule(tenant.residency, pool_rules(settings, tenant))


def budget_limits(settings: Settings) -> list[BudgetLimit]:
    """The limits of tenants' budgets in the configuration."""
    return [
        BudgetLimit(
            name,
            tenant.budget_period,
            tenant.budget_usd,
            tenant.budget_soft_usd,
            is_configured=True,
        )
        for name, tenant in settings.tenants.items()
        if tenant.budget_usd is not None or tenant.budget_soft_usd is not None
    ]


async def load_catalogue(
    settings: Settings, at: datetime, unknown_usd_per_mtok: float | None = None
) -> estimate.Catalogue:
    """Load the catalogue for estimates: pools, also under each preset, and models with prices.

    Args:
        settings: the configuration.
        at: the time at which prices hold.
        unknown_usd_per_mtok: what a million tokens of a model without a price cost.
    """
    pools = settings.pools
    variants = {}
    for name, pool in pools.items():
        for preset, overrides in PRESETS.items():
            variants[name, preset] = _pool(pool.model_copy(update=overrides))
    models = {
        name: await _model(model, at, unknown_usd_per_mtok)
        for name, model in settings.models.items()
    }
    tenant_models = {
        name: frozenset(tenant.models) for name, tenant in settings.tenants.items() if tenant.models
    }
    return estimate.Catalogue(
        {name: _pool(pool) for name, pool in pools.items()}, models, variants, tenant_models
    )


async def _model(model: Model, at: datetime, unknown_usd_per_mtok: float | None) -> estimate.Model:
    if isinstance(model, EdgeModel):
        return estimate.Model(
            is_edge=True, rates=None, max_tokens=model.max_tokens, has_tools=model.tools
        )
    rates = await pricing.rates(model, at)
    if rates is None and unknown_usd_per_mtok is not None:
        usd = unknown_usd_per_mtok / TOKENS_PER_MTOK
        rates = (usd, usd)
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
        checks=pool.checks,
        criteria=pool.criteria,
    )
