"""The catalogue that planning works on, from the configuration."""

from fusewire.contracts import Policy, Sampling
from fusewire.settings import PRESETS, Model, Pool, Settings
from fusewire_dispatcher.planning.catalogue import Catalogue, MemberSpec, ModelSpec, PoolSpec


def build_catalogue(settings: Settings) -> Catalogue:
    """Return all configured pools and models, and each pool under each preset."""
    variants: dict[tuple[str, str], PoolSpec] = {}
    for name in settings.pools:
        for preset in PRESETS:
            variants[name, preset] = _pool_spec(name, _with_preset(settings, name, preset))
    return Catalogue(
        pools={name: _pool_spec(name, settings) for name in settings.pools},
        models={name: _model_spec(model) for name, model in settings.models.items()},
        variants=variants,
        tenant_models={
            name: frozenset(tenant.models)
            for name, tenant in settings.tenants.items()
            if tenant.models
        },
    )


def _model_spec(model: Model) -> ModelSpec:
    return ModelSpec(
        tier=model.kind,
        family=model.family or _guess_family(model),
        has_tools=model.kind == "remote" or model.tools,
        has_images=model.kind == "remote" and model.images,
    )


def _with_preset(settings: Settings, name: str, preset: str) -> Settings:
    """Return the settings with one pool under a preset that a prompt asks for.

    Unlike the preset in a pool's own configuration, it goes before the pool's own keys.
    """
    pool = settings.pools[name].model_copy(update={"preset": preset, **PRESETS[preset]})
    return settings.model_copy(update={"pools": {**settings.pools, name: pool}})


def _pool_spec(name: str, settings: Settings) -> PoolSpec:
    pool = settings.pools[name]
    return PoolSpec(
        members=_member_specs(pool),
        judge=pool.judge or next(iter(pool.jury), None),
        jury=pool.jury,
        is_by_margin=pool.judge_by == "margin",
        judges_own=pool.judge_own,
        policy=_policy(pool),
        quorum=pool.quorum,
        debate_rounds=pool.debate_rounds,
        max_tokens=pool.max_tokens,
        config_hash=settings.config_hash(name),
    )


def _member_specs(pool: Pool) -> tuple[MemberSpec, ...]:
    return tuple(
        MemberSpec(
            name=member.name,
            model=member.model,
            weight=member.weight,
            is_required=member.required,
            system=member.system,
            is_in_steps=member.in_steps,
            sampling=Sampling(
                temperature=member.temperature, top_p=member.top_p, max_tokens=pool.max_tokens
            ),
        )
        for member in pool.members
    )


def _policy(pool: Pool) -> Policy:
    """Return the pool's settings that decide how its fusions are decided."""
    return Policy(**{key: getattr(pool, key) for key in Policy.model_fields})


def _guess_family(model: Model) -> str:
    """Guess the model family from the name: `mistral-7b-instruct` is `mistral`."""
    name = model.path.name if model.kind == "edge" else model.model.rpartition("/")[2]
    return name.lower().split("-")[0].rstrip("0123456789.") or name.lower()
