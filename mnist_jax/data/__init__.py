"""Loads images and labels from any source as a ``Dataset``.

    dataset = load_dataset()                      # MNIST; scikit-learn's digits if MNIST is not available
    dataset = load_dataset("fashion_mnist")       # by name
    dataset = load_dataset("path/to/idx_files")   # four IDX files, raw or .gz
    dataset = load_dataset("train.csv")           # Kaggle's digit-recognizer
    dataset = load_dataset("mnist+digits")        # MNIST, with scikit-learn's digits added to the training split
    dataset = load_dataset("data/mnist/3.0.1")    # prepared by tensorflow-datasets, or by prepare_dataset
    dataset = load_dataset("shards")              # written by python -m mnist_jax.data.write

Loading does not import JAX, so a program can load its data while JAX starts.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np

from mnist_jax.data.cache import load_cached
from mnist_jax.data.dataset import DIGITS, Dataset, Split, StreamedSplit
from mnist_jax.data.digits import load_digits
from mnist_jax.data.download import DownloadError
from mnist_jax.data.files import find_idx_files, read_class_names, read_csv, read_idx_files
from mnist_jax.data.shards import INFO, load_shards, write_shards
from mnist_jax.data.stream import prefetch, stream_batches
from mnist_jax.data.tfds import (
    SOURCES,
    default_tfds_dir,
    load_named,
    load_prepared,
    locate_named,
    open_prepared,
    prepare_dataset,
)
from mnist_jax.errors import InputError, suggest

__all__ = [
    "Dataset",
    "Split",
    "StreamedSplit",
    "class_names_of",
    "is_name",
    "load_dataset",
    "prefetch",
    "prepare_dataset",
    "stream_batches",
    "write_shards",
]

_log = logging.getLogger("mnist_jax")

_MNIST_AND_DIGITS = "mnist+digits"
_NAMES = (*SOURCES, "digits", _MNIST_AND_DIGITS)


def load_dataset(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_validation: int | None = None,
    stream: bool = False,
) -> Dataset:
    """Loads a data set by name or from files.

    A named data set is searched for in ``data_dir``, then in the directory of tensorflow-datasets
    (``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``). If it is in neither, it is downloaded into the latter.

    Args:
        name_or_path: ``mnist``, ``fashion_mnist``, ``kmnist``, ``emnist/digits``, ``digits``, ``mnist+digits``, a
            directory of four IDX files, of prepared tfds data (``.../mnist/3.0.1``) or of shards
            (:func:`write_shards`), or a Kaggle CSV. None means ``mnist``; if MNIST is neither on disk nor reachable,
            it means ``digits``, and a notice is logged.
        data_dir: directory of MNIST's IDX files or of prepared tfds data; default ``$MNIST_JAX_DATA_DIR``.
        num_validation: number of examples to hold out from the end of the training set; None means 5,000, or a
            tenth of a training set with fewer than 50,000.
        stream: leave the training examples of shards or of prepared tfds data on disk, for data larger than memory:
            ``train`` is then a ``StreamedSplit``. Validation and test examples are read into memory.

    Returns:
        Three splits of ``uint8[N, 28, 28, 1]`` images and ``int32[N]`` labels.

    Raises:
        InputError: the data set does not exist, or a file is damaged; the message names it.

    Example:
        >>> load_dataset("digits").train.image.shape
        (1350, 28, 28, 1)
    """
    name = os.fspath(name_or_path) if name_or_path is not None else None
    if stream:
        return _open_streamed(name or "mnist", data_dir, num_validation)
    if name is None:
        try:
            return _load_named("mnist", data_dir, num_validation)
        except DownloadError as error:
            reason = f"MNIST is not on disk and could not be downloaded ({error})"
        notice = f"{reason}: using scikit-learn's 1,797 small digits instead"
        _log.warning(notice)
        digits = Dataset.from_arrays(load_digits(), "digits", num_validation)
        return dataclasses.replace(digits, notice=notice)
    if name == "digits":
        return Dataset.from_arrays(load_digits(), name, num_validation)
    if name in (*SOURCES, _MNIST_AND_DIGITS):
        try:
            if name == _MNIST_AND_DIGITS:
                return _add_digits(_load_named("mnist", data_dir, num_validation))
            return _load_named(name, data_dir, num_validation)
        except DownloadError as error:
            raise InputError(f"data {name}: not on disk, and the download failed: {error}; {_advice(name)}") from None
    try:
        return _load_path(Path(name), num_validation)
    except OSError as error:
        raise InputError(f"data {name[:80]}: cannot be read ({error.strerror})") from None


def _open_streamed(name: str, data_dir: str | os.PathLike[str] | None, num_validation: int | None) -> Dataset:
    path: Path | None = Path(name)
    if name in SOURCES:
        path = locate_named(name, _data_directory(data_dir))
    if path is not None and (path / INFO).is_file():
        return load_shards(path, num_validation, stream=True)
    if path is None or not (path / "dataset_info.json").is_file():
        if not is_name(name) and not Path(name).exists():
            raise _unknown(Path(name))
        raise InputError(
            f"stream: expected a directory of array_record shards, got data {name[:80]}; "
            f"python -m mnist_jax.data.write SHARDS --data {name[:80]} writes them"
        )
    name, splits, checksum = open_prepared(path)
    test = splits["test"].read(np.arange(splits["test"].num_examples))
    return Dataset.from_splits(
        splits["train"], test, name, num_validation, class_names_of(name), str(path.resolve()), checksum
    )


def is_name(data: str | None) -> bool:
    """Returns whether ``load_dataset`` treats ``data`` as a name rather than a path.

    Example:
        >>> is_name("mnist"), is_name("path/to/mnist")
        (True, False)
    """
    return data is None or data in _NAMES


def class_names_of(name: str | None) -> tuple[str, ...]:
    """Returns the class names of a named data set without loading it; for any other data, the ten digits.

    Example:
        >>> class_names_of("fashion_mnist")[-1]
        'Ankle boot'
    """
    return SOURCES[name].class_names if name in SOURCES else DIGITS


def _load_named(name: str, data_dir: str | os.PathLike[str] | None, num_validation: int | None) -> Dataset:
    directory = _data_directory(data_dir)
    arrays = load_named(name, directory)
    path = locate_named(name, directory)
    return Dataset.from_arrays(
        arrays, name, num_validation, SOURCES[name].class_names, None if path is None else str(path)
    )


def _add_digits(dataset: Dataset) -> Dataset:
    """Adds the training examples of scikit-learn's digits, which are written in other ways, to a training split."""
    arrays = load_digits()
    image = np.concatenate([dataset.train.image, arrays["train_image"]])
    label = np.concatenate([dataset.train.label, arrays["train_label"]])
    return dataclasses.replace(dataset, train=Split(image, label), name=_MNIST_AND_DIGITS)


def _load_path(path: Path, num_validation: int | None) -> Dataset:
    absolute = str(path.resolve())
    if path.is_dir():
        if (path / INFO).is_file():
            return load_shards(path, num_validation)
        if (path / "dataset_info.json").is_file():
            prepared_name, arrays = load_prepared(path)
            return Dataset.from_arrays(arrays, prepared_name, num_validation, class_names_of(prepared_name), absolute)
        files = find_idx_files(path)
        if not files:
            raise InputError(
                f"data {path}: expected four IDX files, prepared tfds data or shards in this directory, found none"
            )
        num_classes = 256  # labels are bytes
        arrays = load_cached([*files.values()], lambda: read_idx_files(files, num_classes), num_classes)
        names = read_class_names(path, np.concatenate([arrays["train_label"], arrays["test_label"]]))
        return Dataset.from_arrays(arrays, path.resolve().name, num_validation, names, absolute)
    if path.is_file():
        arrays = load_cached([path], lambda: read_csv(path))
        return Dataset.from_arrays(arrays, path.stem, num_validation, path=absolute)
    raise _unknown(path)


def _unknown(path: Path) -> InputError:
    return InputError(
        f"data must be one of {', '.join(_NAMES)}, or an existing directory of IDX files or CSV file, "
        f"got {str(path)!r}{suggest(str(path), _NAMES)}"
    )


def _data_directory(data_dir: str | os.PathLike[str] | None) -> Path | None:
    origin, given = "data_dir", data_dir
    if given is None:
        origin, given = "$MNIST_JAX_DATA_DIR", os.environ.get("MNIST_JAX_DATA_DIR") or None
    if given is not None and not (os.fspath(given) and Path(given).is_dir()):
        raise InputError(f"{origin} must be an existing directory, got {os.fspath(given)!r}")
    return None if given is None else Path(given)


def _advice(name: str) -> str:
    if name in ("mnist", _MNIST_AND_DIGITS):
        return "put the four IDX files into a directory and pass it as --data-dir, or use --data digits"
    return f"pass a directory of its four IDX files as --data, or prepare {name} in {default_tfds_dir()}"
