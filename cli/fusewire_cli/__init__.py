"""The fusewire command, and the local runner behind it."""
