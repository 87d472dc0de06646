"""How accurate is a single small CNN with augmentation, chosen without using the test split?

Run it with ``python experiments/record_cnn.py --data path/to/mnist --seeds 0-5``.

On one of 2 cores of an AMD EPYC (Zen 5), the other also busy: 99.645 ± 0.027 % on the test split over 6 seeds (99.62
to 99.69), 99.673 ± 0.036 % on the cleaned one; median training time 3.4 min. The target of 99.68 % is missed by 0.035
points. With 16 distorted copies of each test image the accuracy is 99.675 ± 0.023 %, but the copies did not help on the
validation split, so this does not count.

Three convolutions with batch normalisation, 321,642 parameters; each epoch shifts, rotates, scales, shears and
elastically distorts every image anew. On the validation split, one or two runs each: these sizes with 15 and 25
epochs 99.70 and 99.66 %; 32, 32, 64 and 64 channels of 3x3, dropout of 0.4 and 20 epochs 99.62 and 99.66 %; 24, 48, 48
and 64 channels and the mean over each, like ``record_small``, after 23 of 25 epochs 99.56 %, and without label
smoothing and dropout, with milder distortions, 99.54 % after 20. Longer training does not help: 40 epochs on 59,500
images gave 99.64 and 99.62 % on the test split, in two runs after the six. The best single networks in the literature
(99.83 %) are the best of many runs or epochs by accuracy on the test split; here every run counts, after its last step.
"""

from __future__ import annotations

import sys

from experiment import evaluate_with_views, main

from mnist_jax import preset

CLAIM = "99.83 % (the best of many, chosen on the test split); 99.68 % to reach"
TARGETS = {"test_accuracy": 0.9968}
CONFIG = preset("accurate")

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, finish=evaluate_with_views))
