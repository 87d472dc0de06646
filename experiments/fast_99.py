"""How few seconds of training give a mean test accuracy of 99 % on 2 CPU cores?

Run it with ``python experiments/fast_99.py --data path/to/mnist --seeds 0-19``.

On 2 cores of an AMD EPYC (Zen 5): 99.138 ± 0.047 % on the test split over 20 seeds (99.04 to 99.20), median training
time 1.84 s (1.77 to 3.05); the whole process takes 4.3 s the second time, when it finds its compiled programs, and
6.6 s the first time. The public recipe in eager PyTorch, taking turns on the same 55,000 examples: 98.933 ± 0.055 %,
4.47 s (4.20 to 4.72), 8.4 s. Measured by ``python -m benchmarks accuracy``.

The config is the public recipe (https://github.com/tuomaso/train_mnist_fast) with label smoothing of 0.2, worth 0.1 to
0.15 points, and 16 and 48 channels instead of 24 and 32: the best of 35 variants on the validation split, with 99.31 %.
The previous choice, 12 and 24 channels with 99.20 % on the validation split and 1.33 s of training, missed the target
on the test split, with 98.967 % over 20 seeds.
"""

from __future__ import annotations

import sys

from experiment import main

from mnist_jax import preset

CLAIM = "99 % after one epoch (https://github.com/tuomaso/train_mnist_fast)"
TARGETS = {"test_accuracy": 0.99}
CONFIG = preset("fast")

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__))
