"""A search for hyperparameters, decided on the validation split.

``space.py``      what is varied: trials drawn from ranges and choices, in populations and rungs
``run.py``        the search itself, and its directory
``__main__.py``   the command ``python -m mnist_jax.sweep``
"""
