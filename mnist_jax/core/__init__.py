"""Provides pure functions on pytrees: state, losses, steps, evaluation. No config, no files, no clock, no printing."""
