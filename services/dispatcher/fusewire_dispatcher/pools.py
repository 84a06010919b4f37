"""From the configuration to what planning works on."""

from fusewire.contracts import Policy, Sampling
from fusewire.settings import PRESETS, Model, Pool, Settings
from fusewire_dispatcher.planning import Catalogue, MemberSpec, ModelSpec, PoolSpec


def book(settings: Settings) -> Catalogue:
    """All configured pools and models, and each pool under each preset."""
    models = {
        name: ModelSpec(
            tier=m.kind,
            family=m.family or _family(m),
            has_tools=m.kind == "remote" or m.tools,
            has_images=m.kind == "remote" and m.images,
        )
        for name, m in settings.models.items()
    }
    variants = {
        (name, preset): _spec(name, _under(settings, name, preset))
        for name in settings.pools
        for preset in PRESETS
    }
    return Catalogue({name: _spec(name, settings) for name in settings.pools}, models, variants)


def _under(settings: Settings, name: str, preset: str) -> Settings:
    """The settings with a preset laid over one pool; what a prompt asks for goes before the pool's own keys."""
    pool = settings.pools[name].model_copy(update={"preset": preset, **PRESETS[preset]})
    return settings.model_copy(update={"pools": {**settings.pools, name: pool}})


def _spec(name: str, settings: Settings) -> PoolSpec:
    pool = settings.pools[name]
    return PoolSpec(
        members=tuple(
            MemberSpec(
                name=m.name,
                model=m.model,
                weight=m.weight,
                is_required=m.required,
                system=m.system,
                is_in_steps=m.in_steps,
                sampling=Sampling(
                    temperature=m.temperature, top_p=m.top_p, max_tokens=pool.max_tokens
                ),
            )
            for m in pool.members
        ),
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


def _policy(pool: Pool) -> Policy:
    return Policy(**{key: getattr(pool, key) for key in Policy.model_fields})


def _family(model: Model) -> str:
    """The vendor's line of models, as far as the name tells: `mistral-7b-instruct` is `mistral`."""
    name = model.path.name if model.kind == "edge" else model.model.rpartition("/")[2]
    return name.lower().split("-")[0].rstrip("0123456789.") or name.lower()
