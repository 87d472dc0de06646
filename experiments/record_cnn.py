"""How accurate is a single convolutional network, chosen without the test split?

Run it with ``python experiments/record_cnn.py --data path/to/mnist --seeds 0-4``, and with ``--variant deep`` or
``--variant preset`` for other networks.

On one of 2 cores of an AMD EPYC (Zen 5), the other also busy: 99.702 ± 0.033 % on the test split over 5 seeds (99.66 to
99.74), 99.720 ± 0.020 % on the cleaned one, and 99.716 ± 0.035 % with 16 distorted copies of each test image. Training
took 11 to 30 min, 19 min in the median, because the core had other work too; an epoch takes 26 s without it. Seeds 0
to 9 on an NVIDIA H200: 99.694 ± 0.018 %. The target of 99.70 % is met by the five seeds, which have 99.702 % on the GPU
too, and missed by the ten by 0.006 points, the standard error of their mean. ``deep`` has 99.693 ± 0.036 % over ten
seeds on the GPU, ``preset``, which trains in 3.4 min on 55,000 images, 99.645 ± 0.027 % over six.

Three convolutions with batch normalisation, 522,394 parameters; ``deep`` has four, 330,410 parameters. Each epoch
shifts, rotates, scales, shears and elastically distorts every image anew. After the choice, all but 100 of the 60,000
training images train.

The network was chosen by its accuracy on 12,000 training images after training on the other 48,000. The standard error
of each value is 0.05 points, and most networks were trained once, so most of the differences may be chance. It reached
99.68 and 99.70 % on one such fifth and 99.59 % on another. On the first one, ``deep`` reached 99.69 %, a network of 32,
64 and 96 channels of 7x7, 5x5 and 3x3 99.65 %, and ``preset`` 99.61 %. With elastic distortion of 0.8 instead of 0.4
pixels it was 99.67 %, with 1.6 pixels 99.22 %, with smoother distortion 99.68 %, with shifts of 3 pixels and rotations
of 15 degrees 99.60 %, and with 512 instead of 256 dense units and a dropout rate of 0.5 99.64 %.

``preset`` was chosen on the last 5,000 training images, one or two runs each: 15 and 25 epochs had 99.70 and 99.66 %
there, 32, 32, 64 and 64 channels of 3x3 with a dropout rate of 0.4 99.62 and 99.66 %. The best single networks in the
literature (99.83 %) are the best of many runs or epochs by accuracy on the test split; here every run counts, after its
last step.
"""

from __future__ import annotations

import dataclasses
import sys

from experiment import evaluate_with_views, main

from mnist_jax import preset

CLAIM = "99.83 % (the best of many, chosen on the test split); 99.70 % to reach"
TARGETS = {"test_accuracy": 0.997}
CONFIG = dataclasses.replace(
    preset("accurate"), channels=(48, 96, 96), augment_elastic=0.4, epochs=24, num_validation=100
)
VARIANTS = {
    "deep": dataclasses.replace(CONFIG, channels=(32, 32, 64, 64), kernel_sizes=(3, 3, 3, 3), pool_sizes=(1, 2, 1, 2)),
    "preset": preset("accurate"),
}

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, variants=VARIANTS, finish=evaluate_with_views))
