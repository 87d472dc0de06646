"""Loads the embedded data set: scikit-learn's 1,797 real handwritten digits, in the form of MNIST's images.

It needs no download and no file, so it replaces MNIST when MNIST is not available.

Reference: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from mnist_jax.data.cache import load_cached
from mnist_jax.data.dataset import Arrays

_NUM_TEST = 297


def load_digits() -> Arrays:
    """Returns 1,500 training and 297 test examples, shuffled with a fixed seed.

    The 8x8 images go through :func:`mnist_jax.data.strokes.render_ink`, like pictures. Shuffling mixes the writers
    across the splits; in scikit-learn's order the last 297 are harder.
    """
    return load_cached([_original(), Path(__file__), Path(__file__).with_name("strokes.py")], _render_digits)


def _original() -> Path:
    """Returns the file of scikit-learn, without importing it."""
    specification = importlib.util.find_spec("sklearn")
    assert specification is not None and specification.origin is not None
    return Path(specification.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _render_digits() -> Arrays:
    from sklearn.datasets import load_digits as load

    from mnist_jax.data import strokes  # loads SciPy

    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    ink = (data.images[order] / 16).astype(np.float32)  # [N, 8, 8] in [0, 1]
    image = np.stack([strokes.render_ink(strokes.crop(each, 0.0)) for each in ink])
    label = data.target[order].astype(np.int32)
    return {
        "train_image": image[:-_NUM_TEST],
        "train_label": label[:-_NUM_TEST],
        "test_image": image[-_NUM_TEST:],
        "test_label": label[-_NUM_TEST:],
    }
