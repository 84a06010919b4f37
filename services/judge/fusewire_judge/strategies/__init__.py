"""The strategies. Pure: no clock, no randomness, no IO; a case and the time in, a decision out."""
