"""Does the first network of every Keras tutorial reach the same numbers here?

Run it with ``python experiments/keras_dropout.py --data path/to/mnist --seeds 0-4``.

On one of 2 cores of an AMD EPYC (Zen 5), the other also busy: 98.114 ± 0.093 % on the test split over 5 seeds (98.03
to 98.25), validation loss 0.0641 ± 0.0039, final training loss 0.0132; ``plain`` 97.844 ± 0.110 % and 0.0718 ± 0.0050.
Median training time 2.6 s.

Flatten, 128 ReLU, dropout of 0.2, softmax; Adam, batches of 32, 10 epochs. The training loss of Keras is the mean over
the last epoch with dropout, ``train_loss`` here; ``final_train_loss`` is measured with the final model, without
dropout. The evaluation uses the EMA of the parameters (``ema_decay``), the default of ``mnist_jax.train``. The variant
``plain`` evaluates the parameters of the last step, as Keras does, and misses the validation loss.
"""

from __future__ import annotations

import dataclasses
import sys

from experiment import evaluate_training, main

from mnist_jax import TrainConfig

CLAIM = "98 % test accuracy, training loss 0.0809, validation loss 0.0685"
TARGETS = {"test_accuracy": 0.98, "train_loss": 0.0809, "final_train_loss": 0.0809, "validation_loss": 0.0685}
CONFIG = TrainConfig(hidden_sizes=(128,), dropout_rate=0.2, learning_rate=1e-3, batch_size=32, epochs=10)
VARIANTS = {"plain": dataclasses.replace(CONFIG, ema_decay=None)}

if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, variants=VARIANTS, finish=evaluate_training))
