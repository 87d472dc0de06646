"""Benchmarks: each file asks one question and proves that it did the work it timed."""
