"""The strategies: from a closed panel to a draft of the outcome. Pure: no clock, chance or IO."""
