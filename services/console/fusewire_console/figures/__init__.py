"""What pages compute. Pure."""
