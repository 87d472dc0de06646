"""How accurate is ``predict`` on pictures unlike MNIST: enlarged, inverted, thin or thick strokes, uneven light?

``test_accuracy`` is measured on random test digits, each drawn somewhere on a canvas and prepared as ``predict`` does,
for the default run and for a CNN trained with augmentation.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.setting import Row, Setting
from mnist_jax import Predictor, TrainConfig, fit, prepare_image, preset

CONFIGS = [
    TrainConfig(quiet=True),
    dataclasses.replace(preset("demo"), data=None, epochs=6, quiet=True),
]
RENDERINGS: dict[str, dict[str, Any]] = {
    "dark": {},
    "light": {"dark": False},
    "small": {"scale": 3, "canvas": 300},
    "large": {"scale": 12, "canvas": 400},
    "thick": {"width": 1.5},
    "very thick": {"width": 2.0},
    "thin": {"width": 0.6},
    "thin light": {"width": 0.6, "dark": False},
    "very thin": {"width": 0.5},
    "uneven light": {"light": 0.5, "noise": 8},
    "chalk": {"dark": False, "light": 0.5, "noise": 8},
    "cropped to its ink": {"tight": 120},
    "16 pixels high": {"tight": 16},
}


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each network and rendering, first for the original images."""
    num_digits = 20 if setting.quick else 1000
    test = setting.dataset.test
    for config in CONFIGS[: 1 if setting.quick else None]:
        with tempfile.TemporaryDirectory() as directory:
            epochs = 1 if setting.quick else config.epochs
            workdir = str(Path(directory, "run"))
            trained = fit(dataclasses.replace(config, data=setting.data, epochs=epochs, workdir=workdir))
            predictor = Predictor(trained.state)
        for name, options in {"as it is": None, **RENDERINGS}.items():
            rng = np.random.default_rng(0)
            chosen = rng.permutation(test.num_examples)[:num_digits]
            digits = (test.image[index] for index in chosen)
            pictures = (digit if options is None else render(digit, rng, **options) for digit in digits)
            predictions = predictor.classify(np.stack([prepare_image(picture) for picture in pictures])).argmax(axis=1)
            accuracy = float((predictions == test.label[chosen]).mean())
            yield {"name": name, "model": config.model, "examples": len(chosen), "test_accuracy": accuracy}


def render(
    digit: np.ndarray,
    rng: np.random.Generator,
    *,
    scale: int = 5,
    canvas: int = 240,
    width: float = 1.0,
    dark: bool = True,
    light: float = 0.0,
    noise: float = 0.0,
    tight: int = 0,
) -> np.ndarray:
    """Returns a picture of an MNIST digit: enlarged, strokes ``width`` times as wide, somewhere on a canvas.

    With ``tight``, it is cropped to its ink instead, and its longer side has that many pixels.
    """
    side = 28 * scale
    enlarged = Image.fromarray(digit[..., 0]).resize((side, side), Image.Resampling.BICUBIC)
    large = np.asarray(enlarged, np.float32) / 255
    if width != 1:
        mask = np.pad(large > 0.5, 4 * scale)
        inside = ndimage.distance_transform_edt(mask)
        margin = (width - 1) * 2 * inside[mask].mean()
        large = np.clip(inside - ndimage.distance_transform_edt(~mask) + margin + 0.5, 0, 1)
    rows, columns = np.nonzero(large > 0.03)
    large = large[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    if tight:
        height, width_ = (max(8, round(tight * length / max(large.shape))) for length in large.shape)
        resized = Image.fromarray(large.astype(np.float32)).resize((width_, height), Image.Resampling.BOX)
        picture = np.asarray(resized, np.float64)
    else:
        picture = np.zeros((canvas, canvas))
        top, left = (rng.integers(2, canvas - length - 1) for length in large.shape)
        picture[top : top + large.shape[0], left : left + large.shape[1]] = large
    ink, paper = rng.uniform(0, 70), rng.uniform(185, 255)
    picture = paper + (ink - paper) * picture if dark else ink + (paper - ink) * picture
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.indices(picture.shape) / max(picture.shape) - 0.5
    picture *= 1 - light * (0.5 + np.cos(direction) * x + np.sin(direction) * y)
    return np.clip(picture + rng.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
