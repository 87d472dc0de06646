"""Trains on a part of the data: chooses the training examples with the highest scores of difficulty.

index = choose_hardest(read_scores("runs/mine/dynamics/scores.csv", 55_000), 0.5)   # int32[27500]
dataset = take_examples(dataset, index)
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from mnist_jax.data.dataset import Dataset, Split
from mnist_jax.errors import InputError, short_repr


def read_scores(path: str | os.PathLike[str], num_examples: int) -> np.ndarray:
    """Reads a score for each training example: the higher, the harder.

    Args:
        path: a CSV with a column ``score``, and optionally ``index``, the number of the example from 0; a ``.npy`` of
            one array; or a ``.npz`` with an array ``score``.
        num_examples: N.

    Returns:
        ``float64[N]``, in the order of the training split.

    Raises:
        InputError: the file cannot be read, or does not have a finite score for each example.
    """
    path = Path(path)
    try:
        score = _read_csv(path) if path.suffix.lower() == ".csv" else _read_numpy(path)
    except FileNotFoundError:
        raise InputError(f"scores {path}: no such file; python -m mnist_jax.dynamics RUN writes one") from None
    except (OSError, EOFError, ValueError, UnicodeError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"scores {path}: cannot be read ({reason}); expected a .csv, .npy or .npz") from None
    if score.shape != (num_examples,):
        raise InputError(
            f"scores {path}: expected a score for each of the {num_examples} training examples, got {list(score.shape)}"
        )
    if not np.isfinite(score).all():
        row = int(np.flatnonzero(~np.isfinite(score))[0])
        raise InputError(f"scores {path}: expected finite scores, got {score[row]} for example {row}")
    return score


def _read_csv(path: Path) -> np.ndarray:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "score" not in (rows.fieldnames or ()):
            raise ValueError(f"expected a column score, got {short_repr(rows.fieldnames)}")
        pairs = [
            (int(row["index"]) if "index" in row else count, float(row["score"])) for count, row in enumerate(rows)
        ]
    if sorted(index for index, _ in pairs) != list(range(len(pairs))):
        raise ValueError("expected each index from 0 once")
    return np.array([score for _, score in sorted(pairs)], np.float64)


def _read_numpy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            if "score" not in found:
                raise ValueError(f"expected an array score, got {short_repr(list(found))}")
            found = found["score"]
    if found.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, got {found.dtype}")
    return np.asarray(found, np.float64)


def choose_hardest(score: np.ndarray, fraction: float) -> np.ndarray:
    """Chooses the examples with the highest scores; of equal ones, those that come first.

    Args:
        score: ``float[N]``.
        fraction: fraction to keep, in (0, 1]; rounded up to whole examples.

    Returns:
        ``int32[n]``, indices in increasing order.

    Example:
        >>> choose_hardest(np.array([0.1, 0.9, 0.5, 0.5]), 0.5)
        array([1, 2], dtype=int32)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    return np.sort(order[: math.ceil(fraction * len(order))]).astype(np.int32)


def take_examples(dataset: Dataset, index: np.ndarray) -> Dataset:
    """Returns a data set with a part of the training examples.

    Args:
        dataset: the whole data set, in memory.
        index: ``int32[n]``, indices of training examples.
    """
    image, label = dataset.train
    return dataclasses.replace(dataset, train=Split(image[index], label[index]))
