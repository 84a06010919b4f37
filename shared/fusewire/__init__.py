"""Fusewire: what the services share. Import from the modules; this package exports nothing."""
