"""How accurate is a network without augmentation that ignores which pixels are neighbours?

Run it with ``python experiments/record_mlp_pi.py --data path/to/mnist --seeds 0-4``.

On one of 2 cores of an AMD EPYC (Zen 5), the other also busy: 99.308 ± 0.019 % on the test split over 5 seeds (99.28
to 99.33), 99.394 ± 0.021 % on the cleaned one; median training time 3.2 min.

This is the "permutation invariant" task: applying the same permutation to the pixels of all images changes nothing.
Three hidden layers with batch normalisation and virtual adversarial training (https://arxiv.org/abs/1704.03976), which
keeps predictions constant within an L2 distance of 2 of each training image. On the validation split, one run of 15
epochs each: 99.38 %, with a distance of 3 99.32 %; without batch normalisation, but with dropout, 99.14 %. The target
of 99.36 %, the published result of this method, is missed by 0.052 points.

Other networks came no nearer. With 2048, 1024 and 512 units, 40 epochs and all but 100 of the 60,000 training images,
five seeds on an NVIDIA H200 had 99.298 ± 0.016 % on the test split, and with 80 epochs 99.202 ± 0.033 %; no file holds
these ten runs. On 12,000 training images, after training on the other 48,000, one run each and with a standard error of
0.08 points, this config had 99.23 %; with a distance of 3 it was 99.27 %, with 3 and 40 epochs 99.21 %, with label
smoothing of 0.1 99.20 %, and with a dropout rate of 0.2 99.16 %. The mean probabilities of these five networks had
99.26 %, which promises little of a teacher; none was tried. In the mean over the five ways to hold out 12,000 images,
the wider network had 99.24 % after 40 epochs and 99.17 % after 80.
"""

from __future__ import annotations

import sys

from experiment import main

from mnist_jax import TrainConfig

CLAIM = "99.43 % (ladder network), 99.36 % (virtual adversarial training); 99.36 % to reach"
TARGETS = {"test_accuracy": 0.9936}
CONFIG = TrainConfig(
    hidden_sizes=(1200, 600, 300),
    batch_norm=True,
    dropout_rate=0.0,
    adversarial_radius=2.0,
    batch_size=128,
    epochs=20,
    learning_rate=2e-3,
    schedule="one_cycle",
    b2=0.99,
)

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__))
