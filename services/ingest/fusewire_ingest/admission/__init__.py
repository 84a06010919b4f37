"""Admission: what a client submitted, checked against the rules of its pool and tenant."""
