"""Classifies pictures of digits with a trained network.

    predict_image(state, "seven.jpg").class_name                # one picture
    predictor = load_predictor()                                # many pictures; or Predictor(state)
    predictor(Path("seven.jpg").read_bytes()).probabilities
    [digit.class_name for digit in predictor.read("date.jpg")]  # several digits, from left to right
    predictor.predict(dataset.test.image)                       # for images in the format of MNIST

The first prediction imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.core.calibration import Confidence
from mnist_jax.data.dataset import DIGITS
from mnist_jax.pictures.decode import read_file, read_picture
from mnist_jax.pictures.normalize import prepare_image, prepare_images

if TYPE_CHECKING:
    from mnist_jax.core.state import TrainState

_BATCH_SIZE = 100  # of the program for many images; another program takes one image
_MIN_PROBABILITY = 0.6  # of an answer that is not in doubt


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Holds the prediction of a network for one picture.

    Attributes:
        label: the class with the largest probability, in [0, K).
        class_name: name of that class.
        probabilities: ``float32[K]``.
        image: ``uint8[28, 28, 1]``, the input of the network.
        doubt: why the network is not sure, for a reader; None if it is.

    Example:
        >>> probabilities = np.eye(10, dtype=np.float32)[7]
        >>> Prediction(7, "7", probabilities, np.zeros((28, 28, 1), np.uint8)).class_name
        '7'
    """

    label: int
    class_name: str
    probabilities: np.ndarray
    image: np.ndarray
    doubt: str | None = None


class Predictor:
    """Classifies pictures with a network; safe to use from several threads.

    Two programs, for one image and for 100, are compiled at their first use. :func:`mnist_jax.load_predictor` creates
    the predictor of a run.

    Args:
        state: state of a trained network.
        class_names: K names.
        confidence: calibrates the probabilities, and refuses images unlike those of training.
        title: describes the network, for a reader.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> predictor = Predictor(build_state(TrainConfig(hidden_sizes=(8,))))
        >>> image = load_dataset("digits").test.image
        >>> predictor.classify(image).shape
        (297, 10)
        >>> predictor(image[0]).image.shape
        (28, 28, 1)
    """

    def __init__(
        self,
        state: TrainState,
        class_names: Sequence[str] = DIGITS,
        confidence: Confidence | None = None,
        title: str = "",
    ) -> None:
        self._state = state
        self._confidence = confidence or Confidence()
        self.class_names = tuple(class_names)
        self.title = title

    def __call__(self, picture: np.ndarray | bytes | str | os.PathLike[str]) -> Prediction:
        """Classifies the one digit, or the main one, in a picture.

        Args:
            picture: path of an image file, its content, or an array for :func:`mnist_jax.prepare_image`.

        Raises:
            InputError: the picture cannot be read, or no ink is found.
        """
        (prediction,) = self.predict(prepare_image(_read(picture))[None])
        return prediction

    def read(self, picture: np.ndarray | bytes | str | os.PathLike[str]) -> list[Prediction]:
        """Classifies each digit in a picture, from left to right; see :func:`mnist_jax.prepare_images`.

        Raises:
            InputError: the picture cannot be read, no ink is found, or there is more than one line of digits.
        """
        return self.predict(prepare_images(_read(picture)))

    def predict(self, image: np.ndarray) -> list[Prediction]:
        """Classifies images ``uint8[N, 28, 28, 1]`` in the format of MNIST."""
        logits = self._logits(image)
        probabilities, refused = self._confidence.probabilities(logits), self._confidence.refuses(logits, image)
        return [self._to_prediction(*each) for each in zip(image, probabilities, refused, strict=True)]

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Returns probabilities ``float32[N, K]`` for images ``uint8[N, 28, 28, 1]`` in the format of MNIST."""
        return self._confidence.probabilities(self._logits(image))

    def _logits(self, image: np.ndarray) -> np.ndarray:
        size = _BATCH_SIZE if len(image) > 1 else 1
        program = _program()
        found = []
        for start in range(0, len(image), size):
            batch = image[start : start + size]
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(program(self._state, padded))[: len(batch)])
        return np.concatenate(found)

    def _to_prediction(self, image: np.ndarray, probabilities: np.ndarray, refused: bool) -> Prediction:
        label, second = np.argsort(-probabilities, kind="stable")[:2].tolist()
        doubt = None
        if refused:
            doubt = "unlike the images it was trained on"
        elif probabilities[label] < _MIN_PROBABILITY:
            doubt = f"{self.class_names[label]} or {self.class_names[second]}"
        return Prediction(label, self.class_names[label], probabilities, image, doubt)


def predict_image(
    state: TrainState, picture: np.ndarray | bytes | str | os.PathLike[str], class_names: Sequence[str] = DIGITS
) -> Prediction:
    """Classifies one picture of a digit.

    Args:
        state: state of a trained network.
        picture: path or content of a PNG, JPEG, WebP, BMP, GIF or TIFF file, or a grey array ``[H, W]`` in [0, 255];
            dark on light or light on dark, of any size, with the digit anywhere.
        class_names: K names.

    Raises:
        InputError: the picture cannot be read, or no ink is found.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> state = build_state(TrainConfig(hidden_sizes=(8,)))
        >>> prediction = predict_image(state, load_dataset("digits").test.image[0])
        >>> prediction.probabilities.shape, prediction.image.shape
        ((10,), (28, 28, 1))
    """
    return Predictor(state, class_names)(picture)


def _read(picture: np.ndarray | bytes | str | os.PathLike[str]) -> np.ndarray:
    if isinstance(picture, (str, os.PathLike)):
        return read_picture(read_file(picture), os.fspath(picture))
    return read_picture(picture, "the picture") if isinstance(picture, bytes) else picture


@functools.cache
def _program() -> Callable[[TrainState, np.ndarray], Any]:
    import jax

    from mnist_jax.core.apply import apply_model

    @jax.jit
    def logits(state: TrainState, image: jax.Array) -> jax.Array:
        return apply_model(state, state.eval_params, image)[0]

    return logits
