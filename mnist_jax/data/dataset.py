"""Defines ``Split`` and ``Dataset``, the common form of all data sources.

    dataset = Dataset.from_arrays(arrays, name="mnist", num_validation=5_000)
    dataset.train.image        # uint8[55000, 28, 28, 1]
    dataset.test.num_examples  # 10000

Shape letters of the whole package: N examples, B batch, S steps per epoch, H hidden units, K classes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

from mnist_jax.errors import InputError

DIGITS = tuple("0123456789")  # the default class names
IMAGE_SHAPE = (28, 28, 1)
_DEFAULT_NUM_VALIDATION = 5_000


class Split(NamedTuple):
    """Holds images and their labels; a pytree, so jitted functions accept it.

    Attributes:
        image: ``uint8[N, 28, 28, 1]``, 0 is background.
        label: ``int32[N]``, in [0, K).

    Example:
        >>> Split(np.zeros((5, 28, 28, 1), np.uint8), np.zeros(5, np.int32)).num_examples
        5
    """

    image: Any
    label: Any

    @property
    def num_examples(self) -> int:
        """Returns N."""
        return int(self.label.shape[0])

    def check_lengths(self) -> None:
        """Checks that there is a label for each image; also works under a trace.

        Raises:
            ValueError: images and labels differ in number.
        """
        num_images, num_labels = self.image.shape[0], self.label.shape[0]
        if num_images != num_labels:
            raise ValueError(
                f"split must have as many labels as images, got {num_labels} labels of {num_images} images"
            )


@dataclasses.dataclass(frozen=True)
class StreamedSplit:
    """Stands for the training split of data larger than memory: reads examples on demand.

    Attributes:
        read: returns the examples with the given indices, ``int[n]``, as a ``Split`` of NumPy arrays; it may be called
            from several threads.
        num_examples: N.

    Example:
        >>> split = Split(np.zeros((5, 28, 28, 1), np.uint8), np.arange(5, dtype=np.int32))
        >>> streamed = StreamedSplit(lambda index: Split(split.image[index], split.label[index]), 5)
        >>> streamed.read(np.array([3, 1])).label
        array([3, 1], dtype=int32)
    """

    read: Callable[[np.ndarray], Split]
    num_examples: int


# The four arrays that every reader returns: "train_image" and "test_image", uint8[N, 28, 28, 1], and "train_label" and
# "test_label", int[N].
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Holds three splits of labelled 28x28 grey images.

    Attributes:
        train: training examples; a ``StreamedSplit`` if they stay on disk.
        validation: last examples of the original training set; use them for every choice of hyperparameters.
        test: examples for one evaluation at the end.
        name: for example ``"mnist"``.
        class_names: K names.
        notice: message for the user if other data than requested was loaded; else None.
        path: absolute path of the directory or file with the data; None for scikit-learn's digits.
        label_checksum: identifies the training labels. None means their checksum or, for a ``StreamedSplit``, that of
            the validation labels.

    Example:
        >>> from mnist_jax import load_dataset
        >>> dataset = load_dataset("digits")
        >>> dataset.train.num_examples, dataset.validation.num_examples, dataset.test.num_examples
        (1350, 150, 297)
    """

    train: Split
    validation: Split
    test: Split
    name: str
    class_names: tuple[str, ...] = DIGITS
    notice: str | None = None
    path: str | None = None
    label_checksum: str | None = None

    @property
    def num_classes(self) -> int:
        """Returns K."""
        return len(self.class_names)

    @classmethod
    def from_arrays(
        cls,
        arrays: Arrays,
        name: str,
        num_validation: int | None = None,
        class_names: tuple[str, ...] = DIGITS,
        path: str | None = None,
    ) -> Dataset:
        """Splits the training arrays: their last examples become the validation split.

        Args:
            arrays: images and labels, already checked.
            name: name of the data set.
            num_validation: size of the validation split; None means 5,000, or a tenth of a training set
                with fewer than 50,000 examples.
            class_names: K names.
            path: directory or file with the data.

        Raises:
            InputError: ``num_validation`` is less than 1 or leaves no training examples.
        """
        train = Split(arrays["train_image"], arrays["train_label"].astype(np.int32))
        test = Split(arrays["test_image"], arrays["test_label"].astype(np.int32))
        return cls.from_splits(train, test, name, num_validation, class_names, path)

    @classmethod
    def from_splits(
        cls,
        train: Split | StreamedSplit,
        test: Split,
        name: str,
        num_validation: int | None = None,
        class_names: tuple[str, ...] = DIGITS,
        path: str | None = None,
        label_checksum: str | None = None,
    ) -> Dataset:
        """Cuts the validation split off the end of ``train``; that of a ``StreamedSplit`` is read into memory.

        Args:
            train: training and validation examples.
            test: test examples.
            name: see :meth:`from_arrays`, also for the arguments up to ``path``.
            label_checksum: see :class:`Dataset`.
        """
        num_examples = train.num_examples
        if num_validation is None:
            num_validation = min(_DEFAULT_NUM_VALIDATION, max(1, num_examples // 10))
        num_train = num_examples - num_validation
        if not 1 <= num_validation < num_examples:
            raise InputError(
                f"num_validation must be 1 to {num_examples - 1}, for {num_examples} training examples of {name}, "
                f"got {num_validation}"
            )
        if isinstance(train, StreamedSplit):
            validation = train.read(np.arange(num_train, num_examples))
            # ``train`` is typed as a Split: only training itself takes a StreamedSplit.
            first = cast(Split, dataclasses.replace(train, num_examples=num_train))
        else:
            validation = Split(train.image[num_train:], train.label[num_train:])
            first = Split(train.image[:num_train], train.label[:num_train])
        return cls(first, validation, test, name, class_names, None, path, label_checksum)

    def identity(self) -> dict[str, Any]:
        """Returns name, sizes and a checksum of the training labels; they must not change when a run is resumed."""
        splits = {"num_train": self.train, "num_validation": self.validation, "num_test": self.test}
        sizes = {name: split.num_examples for name, split in splits.items()}
        checksum = self.label_checksum
        if checksum is None:
            label = (self.validation if isinstance(self.train, StreamedSplit) else self.train).label
            checksum = f"{zlib.crc32(np.ascontiguousarray(label).tobytes()):08x}"
        return {"name": self.name, **sizes, "label_checksum": checksum}


def check_labels(label: np.ndarray, where: str, num_classes: int = len(DIGITS)) -> None:
    """Checks that labels lie in [0, K).

    Raises:
        InputError: a label is out of range; the message names the first.
    """
    wrong = np.flatnonzero((label < 0) | (label >= num_classes))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(f"{where}: labels must be 0 to {num_classes - 1}, got {label[row]} at example {row}")
