"""From the configuration to what admission works on."""

from fusewire.settings import Settings
from fusewire_ingest.admission import PoolRule, TenantRule
from fusewire_ingest.naming import Names


def names(settings: Settings) -> Names:
    """What clients may call the configured models."""
    slugs = {name: m.model if m.kind == "remote" else None for name, m in settings.models.items()}
    return Names.of(slugs, settings.aliases)


def pool_rules(settings: Settings) -> dict[str, PoolRule]:
    """All configured pools."""
    known = names(settings)
    return {
        name: PoolRule(p.mode, p.residency, p.deadline_s, p.batch_deadline_s, known)
        for name, p in settings.pools.items()
    }


def tenant_rule(settings: Settings, tenant: str) -> TenantRule:
    """What a tenant may."""
    rule = settings.tenant(tenant)
    return TenantRule(rule.residency, frozenset(rule.pools))
