"""How accurate is a fully connected network that never sees an image twice?

Run it with ``python experiments/record_mlp.py --data path/to/mnist --seeds 0-4``.

On one of 2 cores of an AMD EPYC (Zen 5), the other also busy: 99.558 ± 0.019 % on the test split over 5 seeds (99.54
to 99.59), 99.608 ± 0.004 % on the cleaned one, and 99.556 ± 0.017 % with 16 distorted copies of each test image. The
target of 99.55 % is met. Training took 26 to 40 min, 32 min in the median, because the cores had other work too.

Three hidden layers with batch normalisation, 4,239,370 parameters; each epoch shifts, rotates, scales, shears and
elastically distorts every image anew, as Ciresan et al. (https://arxiv.org/abs/1003.0358) did for a thousand epochs
with 12 million weights. All but 100 of the 60,000 training images train. An earlier version with 40 epochs on 55,000
images had 99.428 ± 0.029 % on the test split; that 150 epochs are better was assumed, not chosen.

The rest was chosen on the validation split, one run each: 1024-1024 and 25 epochs had 99.34 % without and 99.40 % with
batch normalisation, 20 epochs of it with virtual adversarial training 99.20 %, and 2048-1024-512 and 40 epochs 99.60 %.
On the last 10,000 training images, 1024-512 and 25 epochs with shifts of up to 1.5, 0.8 and 0.5 pixels had 99.43, 99.46
and 99.45 %; with 0.8 pixels, label smoothing of 0.1 had 99.38 % and dropout of 0.1 99.37 %.
"""

from __future__ import annotations

import sys

from experiment import evaluate_with_views, main

from mnist_jax import TrainConfig

CLAIM = "99.65 % (12 million weights, whole set deformed again every epoch); 99.55 % to reach"
TARGETS = {"test_accuracy": 0.9955}
CONFIG = TrainConfig(
    hidden_sizes=(2048, 1024, 512),
    batch_norm=True,
    dropout_rate=0.0,
    augment_shift=1.5,
    augment_rotation=12,
    augment_scale=0.12,
    augment_shear=0.12,
    augment_elastic=1.0,
    batch_size=128,
    epochs=150,
    num_validation=100,
    learning_rate=3e-3,
    schedule="one_cycle",
    b2=0.99,
)

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, finish=evaluate_with_views))
