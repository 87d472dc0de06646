"""Benchmarks, one question per file; run ``python -m benchmarks --help``."""
