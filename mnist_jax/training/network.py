"""Loads the network that classifies pictures: that of a run, or the one in the box.

    load_predictor("runs/mine")("seven.jpg").class_name
    load_predictor()   # the newest run on MNIST in runs/, else the network in the box

The network in the box, ``network.safetensors``, is a small CNN that ships with this package, so that pictures are read
offline before anything was trained. Its 6,926 parameters were trained on distorted copies of MNIST and scikit-learn's
digits, and read 99.46 % of MNIST's test digits and 97.64 % of scikit-learn's. The recipe and the commands are in
``experiments/small_for_anyone.py``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_jax.config import TrainConfig
from mnist_jax.core.calibration import Confidence
from mnist_jax.errors import InputError, one_line
from mnist_jax.jsonfile import is_number, read_json
from mnist_jax.pictures.predictor import Predictor
from mnist_jax.training.export import load_export
from mnist_jax.training.loading import load_class_names, load_run
from mnist_jax.training.runs import newest_mnist_run

_log = logging.getLogger("mnist_jax")
_BOX = "the network in the box, a cnn on MNIST and scikit-learn's digits"
_FILE = Path(__file__).with_name("network.safetensors")
_CONFIDENCE_FILE = _FILE.with_name("network.confidence.json")  # of the same run, fitted on MNIST's validation split


def load_predictor(run: str | os.PathLike[str] | None = None) -> Predictor:
    """Loads the network of a run, to classify pictures with calibrated probabilities.

    Args:
        run: the run directory. Default: the newest finished run in ``runs/`` that was trained on MNIST; if there is
            none, the network in the box. A notice says which one it is.

    Raises:
        InputError: as :func:`load_run`.

    Example:
        >>> predictor = load_predictor()
        >>> predictor.class_names[7]
        '7'
    """
    directory = newest_mnist_run() if run is None else Path(run)
    if directory is None:
        _log.warning("using %s", _BOX)
        return _load_box()
    config, state = load_run(directory)
    summary = _read_summary(directory)
    title = _describe(config, summary)
    if run is None:
        _log.warning("using the newest run on MNIST, %s: %s", directory, title)
    confidence = _read_confidence(directory / "confidence.json", state.recipe.num_classes)
    return Predictor(state, load_class_names(directory), confidence, title)


def _load_box() -> Predictor:
    _, state = load_export(_FILE)
    return Predictor(state, confidence=_read_confidence(_CONFIDENCE_FILE, state.recipe.num_classes), title=_BOX)


def _read_summary(directory: Path) -> Mapping[str, Any]:
    """Returns the summary of a run; nothing for an unfinished run, or if it is damaged."""
    try:
        return dict(read_json(directory / "summary.json"))
    except (InputError, OSError, TypeError, ValueError):
        return {}


def _read_confidence(path: Path, num_logits: int) -> Confidence:
    """Reads a ``confidence.json``; without it, as in an unfinished run, probabilities are not calibrated."""
    try:
        confidence = Confidence.from_dict(read_json(path))
        if confidence.mean is not None and len(confidence.mean) != num_logits:
            raise ValueError(f"expected {num_logits} classes, got {len(confidence.mean)}")
        return confidence
    except FileNotFoundError:
        return Confidence()
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is damaged ({one_line(error)}); delete it, and predictions are not calibrated"
        ) from None


def _describe(config: TrainConfig, summary: Mapping[str, Any]) -> str:
    """Returns for example ``cnn on mnist, 99.18 % test accuracy``."""
    accuracy, dataset = summary.get("test_accuracy"), summary.get("dataset")
    if is_number(accuracy) and isinstance(dataset, str):
        return f"{config.model} on {dataset}, {100 * accuracy:.2f} % test accuracy"
    return f"{config.model} on {Path(config.data or 'mnist').stem}, training not finished"
