"""Trains a run on a part of its training examples, and keeps which in ``kept.npy`` of the run directory.

index = choose_kept(config, dataset, directory.path)   # int32[n], or None for all
dataset = take_examples(dataset, index)
write_kept(directory.path, index)
dataset = take_kept(dataset, "runs/mine")              # later: the examples that a run was trained on
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.config import TrainConfig
from mnist_jax.data import Dataset, StreamedSplit
from mnist_jax.data.subset import choose_hardest, read_scores, take_examples
from mnist_jax.errors import InputError, one_line
from mnist_jax.training import processes


def choose_kept(config: TrainConfig, dataset: Dataset, resumed: Path | None) -> np.ndarray | None:
    """Returns the training examples that ``keep_hardest`` and ``scores`` keep; None for all.

    Args:
        config: the run.
        dataset: the whole data set.
        resumed: directory of the run to resume, which need not have its scores any more.

    Raises:
        InputError: the data is streamed, or the scores cannot be used.
    """
    if config.keep_hardest is None:
        return None
    if isinstance(dataset.train, StreamedSplit):
        raise InputError("keep_hardest needs the training examples in memory, not on disk: leave it out")
    kept = None if resumed is None else read_kept(resumed)
    if kept is None:
        assert config.scores is not None
        kept = choose_hardest(read_scores(config.scores, dataset.train.num_examples), config.keep_hardest)
    return kept


def write_kept(directory: Path, index: np.ndarray) -> None:
    """Writes ``kept.npy``, ``int32[n]``: the training examples of the run, by their number in the whole split."""
    if processes.is_first():
        with atomic_write(directory / "kept.npy", locked=True) as file:
            np.save(file, index)


def take_kept(dataset: Dataset, run: str | os.PathLike[str]) -> Dataset:
    """Returns a data set with the training examples that a run was trained on.

    Args:
        dataset: the whole data set that the run names.
        run: the run directory.

    Raises:
        InputError: ``kept.npy`` of the run cannot be used.
    """
    index = read_kept(Path(run))
    if index is None:
        return dataset
    if index.max() >= dataset.train.num_examples:
        raise InputError(
            f"{Path(run, 'kept.npy')}: expected examples of the {dataset.train.num_examples} of {dataset.name}, "
            f"got {index.max()}"
        )
    return take_examples(dataset, index)


def read_kept(directory: Path) -> np.ndarray | None:
    """Returns ``kept.npy`` of a run, ``int32[n]``; None if the run was trained on all examples.

    Raises:
        InputError: the file cannot be used.
    """
    path = directory / "kept.npy"
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            index = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: expected numbers of training examples ({one_line(str(error))})") from None
    if index.dtype != np.int32 or index.ndim != 1 or not index.size or index.min() < 0:
        raise InputError(f"{path}: expected numbers of training examples, got {index.dtype}{list(index.shape)}")
    return index
