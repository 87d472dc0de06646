"""Can two dense layers and 100 epochs reach 99 % on the test split?

Run it with ``python experiments/two_dense_100.py --data path/to/mnist --seeds 0-4``, and with ``--variant plain`` for
the network without augmentation.

On one of 2 cores of an AMD EPYC (Zen 5), the other busy too: 99.350 ± 0.070 % on the test split over 5 seeds (99.29 to
99.46), test loss 0.0186 ± 0.0007, 2.3 min of training at the median; plain 98.416 ± 0.097 % and 0.1086.

The plain network learns its training images by heart. Here no image is ever seen twice: each is shifted, turned, scaled
and distorted anew in each epoch, while the learning rate falls along a cosine. Accuracy and loss of both splits are
plotted in ``figures/learning_curves.png`` of the run directory.
"""

from __future__ import annotations

import dataclasses
import sys

from experiment import evaluate_training, main

from mnist_jax import TrainConfig

CLAIM = "99 % test accuracy, test loss 0.0700"
BARS = {"test_accuracy": 0.99, "test_loss": 0.07}
CONFIG = TrainConfig(
    hidden_sizes=(512,),
    dropout_rate=0.0,
    learning_rate=1e-3,
    schedule="cosine",
    augment_shift=1,
    augment_rotation=8,
    augment_scale=0.08,
    augment_elastic=0.7,
    batch_size=128,
    epochs=100,
)
VARIANTS = {
    "plain": dataclasses.replace(
        CONFIG, schedule="constant", augment_shift=0, augment_rotation=0, augment_scale=0, augment_elastic=0
    )
}

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, variants=VARIANTS, finish=evaluate_training))
