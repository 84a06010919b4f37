"""`fusewire ablate`: what each member of a pool is worth."""
