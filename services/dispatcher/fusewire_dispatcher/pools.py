"""From the configuration to what planning works on."""

from fusewire.contracts import Policy, Sampling
from fusewire.settings import Model, Pool, Settings
from fusewire_dispatcher.planning import Book, MemberSpec, ModelSpec, PoolSpec


def book(settings: Settings) -> Book:
    """All configured pools and models."""
    pools = {
        name: PoolSpec(
            members=tuple(
                MemberSpec(
                    name=m.name,
                    model=m.model,
                    weight=m.weight,
                    is_required=m.required,
                    system=m.system,
                    sampling=Sampling(temperature=m.temperature, top_p=m.top_p, max_tokens=pool.max_tokens),
                )
                for m in pool.members
            ),
            judge=pool.judge or next(iter(pool.jury), None),
            jury=pool.jury,
            policy=_policy(pool),
            quorum=pool.quorum,
            debate_rounds=pool.debate_rounds,
            config_hash=settings.config_hash(name),
        )
        for name, pool in settings.pools.items()
    }
    models = {
        name: ModelSpec(tier=m.kind, family=m.family or _family(m), has_tools=m.kind == "remote")
        for name, m in settings.models.items()
    }
    return Book(pools, models)


def _policy(pool: Pool) -> Policy:
    return Policy(**{key: getattr(pool, key) for key in Policy.model_fields})


def _family(model: Model) -> str:
    """The vendor's line of models, as far as the name tells: `mistral-7b-instruct` is `mistral`."""
    name = model.path.name if model.kind == "edge" else model.model.rpartition("/")[2]
    return name.lower().split("-")[0].rstrip("0123456789.") or name.lower()
