"""Fakes and factories for tests and benchmarks. Nothing here serves a real prompt."""
