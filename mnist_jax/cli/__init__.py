"""The layer below every command (``flags.py``), and the command ``mnist-jax`` that holds them all (``main.py``)."""
