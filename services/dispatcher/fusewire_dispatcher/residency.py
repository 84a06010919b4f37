"""Residency: where the content of a prompt may go."""

from fusewire.contracts import Residency, Tier


def permits(residency: Residency, tier: Tier) -> bool:
    """Whether a prompt of this residency may be shown to a model of this tier."""
    return residency == "any" or tier == "edge"
