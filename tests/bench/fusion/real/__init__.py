"""Recorded answers of real small models, and what each way of fusing is worth on them."""
