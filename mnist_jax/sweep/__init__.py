"""Searches for hyperparameters on the validation split.

``space.py``      the search space: trials sampled from ranges and choices, in populations and rungs
``run.py``        the search and its directory
``__main__.py``   the command ``python -m mnist_jax.sweep``
"""
