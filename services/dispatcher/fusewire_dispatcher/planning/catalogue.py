"""Pools and models, as far as planning needs them. Pure."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from fusewire.contracts import Policy, Prompt, Sampling, Tier


@dataclass(frozen=True)
class ModelSpec:
    """A configured model."""

    tier: Tier
    family: str
    has_tools: bool = True
    """Whether it can be given functions to call."""
    has_images: bool = False
    """Whether it can be given images."""


@dataclass(frozen=True)
class MemberSpec:
    """A member of a pool."""

    name: str
    model: str
    weight: float
    system: str | None
    sampling: Sampling
    is_required: bool = False
    is_in_steps: bool = False


@dataclass(frozen=True)
class PoolSpec:
    """A pool, under one preset."""

    members: tuple[MemberSpec, ...]
    judge: str | None
    quorum: float
    debate_rounds: int
    config_hash: str
    jury: tuple[str, ...] = ()
    is_by_margin: bool = False
    """Whether its edge judges choose the answer that their model finds the most probable."""
    judges_own: bool = False
    """Whether such a judge chooses among the answers of its own model too."""
    policy: Policy = field(default_factory=Policy)
    max_tokens: int | None = None
    """The answer length of members that are not its own."""

    def member(self, name: str, model: str) -> MemberSpec:
        """Find the member of this name and model, or make one for a model that a prompt names.

        A member that is made has the settings of the pool's first member of that model, if
        there is one.
        """
        same_model = [member for member in self.members if member.model == model]
        for member in same_model:
            if member.name == name:
                return member
        if same_model and name == model:
            return replace(same_model[0], name=name)
        return MemberSpec(name, model, 1.0, None, Sampling(max_tokens=self.max_tokens))


@dataclass(frozen=True)
class Catalogue:
    """All pools and models."""

    pools: Mapping[str, PoolSpec]
    models: Mapping[str, ModelSpec]
    variants: Mapping[tuple[str, str], PoolSpec] = field(default_factory=dict)
    """By pool and preset: pools under the presets that prompts may ask for."""
    tenant_models: Mapping[str, Set[str]] = field(default_factory=dict)
    """By tenant, the models that may see its prompts; those of other tenants, all may see."""

    def for_tenant(self, tenant: str) -> "Catalogue":
        """Return the catalogue in which models that may not see a tenant's prompts are unknown."""
        names = self.tenant_models.get(tenant)
        if names is None:
            return self
        return replace(self, models={n: spec for n, spec in self.models.items() if n in names})

    def pool(self, prompt: Prompt) -> PoolSpec | None:
        """Return the pool of a prompt, under the preset that the prompt asks for."""
        if prompt.preset is None:
            return self.pools.get(prompt.pool)
        return self.variants.get((prompt.pool, prompt.preset))
