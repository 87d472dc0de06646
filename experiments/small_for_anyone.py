"""The network in the box: how well do fewer than 7,000 parameters read handwriting that is not MNIST's?

Run it with ``python experiments/small_for_anyone.py --workdir runs/box``. Then
``python -m mnist_jax.export runs/box --format safetensors --output mnist_jax/pictures/network.safetensors``
writes the file that ``predict`` and ``demo`` use where no run was trained on MNIST.

The network is that of ``record_small``. It trains on MNIST and scikit-learn's digits, which have more ways of writing a
1, with stronger distortions.
"""

from __future__ import annotations

import dataclasses
import sys

import record_small
from experiment import main

CLAIM = "99.4 % on MNIST with fewer than 7,000 parameters, trained for other handwriting too"
TARGETS = {"test_accuracy": 0.994, "num_parameters": 6999}
CONFIG = dataclasses.replace(
    record_small.CONFIG,
    data="mnist+digits",
    augment_shift=2,
    augment_rotation=12,
    augment_scale=0.15,
    augment_shear=0.15,
    augment_elastic=0.6,
)

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__))
