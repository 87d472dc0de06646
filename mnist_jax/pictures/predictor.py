"""Classifies pictures of digits with a trained network.

    predict_image(state, "seven.jpg").class_name                # one picture
    predictor = Predictor(state)                                # many pictures
    predictor(Path("seven.jpg").read_bytes()).probabilities
    predictor.classify(dataset.test.image)                      # float32[N, K], for images in the format of MNIST

The first prediction imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.data.dataset import DIGITS
from mnist_jax.pictures.decode import read_file, read_picture
from mnist_jax.pictures.normalize import prepare_image

if TYPE_CHECKING:
    from mnist_jax.core.state import TrainState

_BATCH_SIZE = 100  # of the program for many images; another program takes one image


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Holds the prediction of a network for one picture.

    Attributes:
        label: the class with the largest probability, in [0, K).
        class_name: name of that class.
        probabilities: ``float32[K]``.
        image: ``uint8[28, 28, 1]``, the input of the network.

    Example:
        >>> probabilities = np.eye(10, dtype=np.float32)[7]
        >>> Prediction(7, "7", probabilities, np.zeros((28, 28, 1), np.uint8)).class_name
        '7'
    """

    label: int
    class_name: str
    probabilities: np.ndarray
    image: np.ndarray


class Predictor:
    """Classifies pictures with a network; safe to use from several threads.

    Two programs, for one image and for 100, are compiled at their first use.

    Args:
        state: state of a trained network.
        class_names: K names.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> predictor = Predictor(build_state(TrainConfig(hidden_sizes=(8,))))
        >>> image = load_dataset("digits").test.image
        >>> predictor.classify(image).shape
        (297, 10)
        >>> predictor(image[0]).image.shape
        (28, 28, 1)
    """

    def __init__(self, state: TrainState, class_names: Sequence[str] = DIGITS) -> None:
        self._state = state
        self._class_names = tuple(class_names)

    def __call__(self, picture: np.ndarray | bytes | str | os.PathLike[str]) -> Prediction:
        """Classifies one picture.

        Args:
            picture: path of an image file, its content, or an array for :func:`mnist_jax.prepare_image`.

        Raises:
            InputError: the picture cannot be read, or no ink is found.
        """
        if isinstance(picture, (str, os.PathLike)):
            picture = read_picture(read_file(picture), os.fspath(picture))
        elif isinstance(picture, bytes):
            picture = read_picture(picture, "the picture")
        image = prepare_image(picture)
        return self.to_prediction(image, self.classify(image[None])[0])

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Returns probabilities ``float32[N, K]`` for images ``uint8[N, 28, 28, 1]`` in the format of MNIST."""
        size = _BATCH_SIZE if len(image) > 1 else 1
        program = _program()
        found = []
        for start in range(0, len(image), size):
            batch = image[start : start + size]
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(program(self._state, padded))[: len(batch)])
        return np.concatenate(found)

    def to_prediction(self, image: np.ndarray, probabilities: np.ndarray) -> Prediction:
        """Creates the prediction of the most probable class."""
        label = int(probabilities.argmax())
        return Prediction(label, self._class_names[label], probabilities, image)


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


@functools.cache
def _program() -> Callable[[TrainState, np.ndarray], Any]:
    import jax

    from mnist_jax.core.apply import apply_model

    @jax.jit
    def probabilities(state: TrainState, image: jax.Array) -> jax.Array:
        return jax.nn.softmax(apply_model(state, state.eval_params, image)[0])

    return probabilities
