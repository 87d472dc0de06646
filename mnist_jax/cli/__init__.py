"""Provides flags and errors for every command (``flags.py``), and ``mnist-jax``, which runs them (``main.py``)."""
