"""What pages compute from rows of views. Pure."""
