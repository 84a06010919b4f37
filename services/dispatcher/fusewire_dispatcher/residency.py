"""Residency: where the content of a prompt may go. Pure."""

from fusewire.contracts import Residency, Tier


def permits(residency: Residency, tier: Tier) -> bool:
    """Tell whether a prompt of this residency may be shown to a model of this tier."""
    return residency == "any" or tier == "edge"
