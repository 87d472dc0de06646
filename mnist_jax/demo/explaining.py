"""Finds the training examples behind an answer of the demo, once the run's explainer is loaded in the background.

explain = BackgroundExplainer("runs/mine", predictor)
explain(content)    # None; loading has begun
explain(content)    # later: [Example(index=17, class_name="7", image=...), ...]
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mnist_jax.errors import InputError

if TYPE_CHECKING:
    from mnist_jax.pictures.predictor import Prediction, Predictor
    from mnist_jax.training.explanation import Explainer

NUM_EXAMPLES = 6
_log = logging.getLogger("mnist_jax")


@dataclasses.dataclass(frozen=True)
class Example:
    """Holds a training example.

    Attributes:
        index: index in the training split.
        class_name: name of its class.
        image: ``uint8[28, 28, 1]``.
    """

    index: int
    class_name: str
    image: np.ndarray


class BackgroundExplainer:
    """Finds the training examples that speak most for the answer to a picture; safe to use from several threads.

    The first call begins to load the explainer of the run in a thread, because it may take as long as an epoch. If the
    training data of the run is missing, a notice is logged, and no examples are ever found.

    Args:
        run: directory of the run.
        predictor: its predictor.
    """

    def __init__(self, run: str | os.PathLike[str], predictor: Predictor) -> None:
        self._run, self._predictor, self._lock = run, predictor, threading.Lock()
        self._loading: Future[Explainer | None] | None = None

    def __call__(self, content: bytes) -> Sequence[Example] | None:
        """Returns training examples for the content of a picture, or None if they are not known yet."""
        with self._lock:
            if self._loading is None:
                pool = ThreadPoolExecutor(1, "explainer")
                self._loading = pool.submit(self._load)
                pool.shutdown(wait=False)
        explainer = self._loading.result() if self._loading.done() else None
        if explainer is None:
            return None
        prediction = choose_prediction(self._predictor.read(content))
        influences = explainer(prediction.image, prediction.label, NUM_EXAMPLES).helpful
        names = self._predictor.class_names
        return [Example(each.index, names[each.label], explainer.split.image[each.index]) for each in influences]

    def _load(self) -> Explainer | None:
        from mnist_jax.training.explanation import load_explainer

        try:
            explainer = load_explainer(self._run)
        except InputError as error:
            _log.warning("no training digits on the page: %s", error)
            return None
        explainer(explainer.split.image[0], 0)  # compiles
        return explainer


def choose_prediction(predictions: Sequence[Prediction]) -> Prediction:
    """Returns the least certain prediction of a picture with several digits, which the page shows."""
    return min(predictions, key=lambda each: (each.doubt is None, each.probabilities.max()))
